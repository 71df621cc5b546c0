"""Records: what may be missing, and what may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.dataset.records import Record, parse_pretraining_record
from colossal_llama2.errors import InputError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(source=TEXT, target=TEXT.filter(bool), category=TEXT.filter(bool), plain=st.booleans())
def test_texts_come_back_character_for_character(source: str, target: str, category: str, plain: bool) -> None:
    fields = {"source": source, "target": target, "category": category}
    raw = json.dumps(fields, ensure_ascii=plain).encode()
    assert parse_pretraining_record(raw, Path("f"), 1) == Record(source, target, category)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"target": "t"}, Record("", "t", "unknown")),
        ({"target": "t", "category": ""}, Record("", "t", "unknown")),
        ({"target": " ", "source": "s", "more": [1]}, Record("s", " ", "unknown")),
    ],
)
def test_source_and_category_may_be_missing(fields: dict[str, Any], expected: Record) -> None:
    assert parse_pretraining_record(json.dumps(fields).encode(), Path("f"), 1) == expected


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"source": "s"}, 'no "target"'),
        ({"target": ""}, '"target" is empty'),
        ({"target": None}, '"target" is null'),
        ({"target": 3}, '"target" is a JSON int'),
        ({"target": "t", "source": ["s"]}, '"source" is a JSON list'),
        ({"target": "t", "category": None}, '"category" is null'),
    ],
)
def test_anything_else_is_refused_with_file_and_line(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        parse_pretraining_record(json.dumps(fields).encode(), Path("folder/f.jsonl"), 7)
    assert str(caught.value).startswith("folder/f.jsonl:7: ")
