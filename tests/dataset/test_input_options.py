"""Input options: what they say of a record, and what they cannot say."""

from __future__ import annotations

from typing import Any

import pytest

from colossal_llama2 import cli
from colossal_llama2.dataset.input_options import InputOptions
from colossal_llama2.dataset.records import Reading
from colossal_llama2.errors import InputError


def test_flags_become_a_reading() -> None:
    assert InputOptions().reading == Reading()
    flags = "--bad_records skip --source_field q --target_field a --category_field kind --category_from folder"
    assert cli.parse(InputOptions, flags.split()).reading == Reading(True, None, "q", "a", "kind", "folder")
    assert cli.parse(InputOptions, ["--text_field", "body"]).reading == Reading(text_field="body")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"text_field": "a", "target_field": "b"}, "--text_field learns that field alone"),
        ({"text_field": "a", "source_field": "b"}, "--text_field learns that field alone"),
        ({"source_field": "a", "target_field": "a"}, "name one field"),
        ({"target_field": "source"}, "name one field"),
        ({"source_field": "target"}, "name one field"),
        ({"category_field": ""}, "cannot be empty"),
        ({"dedup_threshold": 0.0}, "--dedup_threshold is 0.0; give a share"),
        ({"dedup_threshold": 1.5}, "--dedup_threshold is 1.5; give a share"),
        ({"dedup_threshold": float("nan")}, "--dedup_threshold is nan; give a share"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        InputOptions(**options).check()
