"""Looking: what is printed is what lies in the row, learned tokens apart, boundaries marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.dataset.inspect_dataset import InspectSettings, main
from colossal_llama2.errors import InputError

RECORDS = [{"source": "the lazy dog", "target": " jumps over", "category": "a"}, {"target": "the fox", "category": "b"}]


@pytest.fixture
def looked_at(tmp_path: Path, prepare: Callable[..., Any], llama_tokenizer_dir: Path) -> InspectSettings:
    prepare(tmp_path, RECORDS, max_length=64)
    return InspectSettings(tmp_path / "arrow", row=0, tokenizer_dir=llama_tokenizer_dir, colour=False)


def test_a_row_is_printed_with_its_boundaries_and_learned_tokens_apart(
    looked_at: InspectSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    main(looked_at)
    said = capsys.readouterr().out
    assert said.count("── piece") == 2
    assert "<s> the lazy dog[ jumps over</s>]" in said
    assert "<s>[ the fox</s>]" in said
    main(replace(looked_at, colour=True))
    coloured = capsys.readouterr().out
    assert "\x1b[32m jumps over</s>\x1b[0m" in coloured
    assert "\x1b[90m<s> the lazy dog\x1b[0m" in coloured


def test_without_a_tokenizer_ids_are_printed(looked_at: InspectSettings, capsys: pytest.CaptureFixture[str]) -> None:
    main(replace(looked_at, tokenizer_dir=None))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("1[") and line.endswith(" 2]") for line in lines)


def test_the_summary_is_the_ledgers(looked_at: InspectSettings, capsys: pytest.CaptureFixture[str]) -> None:
    main(replace(looked_at, row=None, summary=True))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["documents", "2"] for line in lines)
    assert sum(line.startswith(("a ", "b ")) for line in lines) == 2


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"row": 7}, "has no row 7; give 0 to 0"),
        ({"row": None}, "nothing to look at"),
        ({"dataset": Path("gone")}, "gone: does not exist"),
    ],
)
def test_mistakes(changed: dict[str, Any], complaint: str, looked_at: InspectSettings) -> None:
    with pytest.raises(InputError, match=complaint):
        main(replace(looked_at, **changed))


def test_another_tokenizer_is_refused(looked_at: InspectSettings, byte_level_tokenizer_dir: Path) -> None:
    with pytest.raises(InputError, match="is not the tokenizer that the corpus was encoded with"):
        main(replace(looked_at, tokenizer_dir=byte_level_tokenizer_dir))
