"""Seeds come from any layout, and what is none is named with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.chat.seed_tasks import SeedTask, read_examples, read_lines, read_seeds
from colossal_llama2.errors import InputError


def written(folder: Path, *records: Any) -> Path:
    path = folder / "seeds.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_seeds_of_several_layouts(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"instruction": " Add. ", "input": "1 2", "output": "3"},
        {
            "instruction": "Sort.",
            "instances": [{"input": "", "output": "a b"}, {"input": "x"}],
            "is_classification": False,
        },
        {"instruction": "Sing."},
        {"prompt": "Why?"},
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How?"}]},
    )
    expected = [
        SeedTask("Add.", "1 2", "3"),
        SeedTask("Sort.", "", "a b"),
        SeedTask("Sing."),
        SeedTask("Why?"),
        SeedTask("How?"),
    ]
    assert read_seeds(path) == expected


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"instruction": " "}, "2: .*says nothing"),
        ({"instruction": 3}, "2: .*JSON int"),
        ({"instruction": "x", "instances": ["y"]}, "2: .*no object"),
        ({"text": "x"}, "2: .*no layout"),
    ],
)
def test_records_that_are_no_seed(tmp_path: Path, record: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        read_seeds(written(tmp_path, {"instruction": "Add."}, record))


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    for read in (read_seeds, read_examples):
        with pytest.raises(InputError, match="holds no record"):
            read(written(tmp_path))
    path = tmp_path / "lines.txt"
    path.write_text("\ufeff tea \n\n 茶\r\n", encoding="utf-8")
    assert read_lines(path) == ["tea", "茶"]
    path.write_text(" \n", encoding="utf-8")
    with pytest.raises(InputError, match="says nothing"):
        read_lines(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        read_lines(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_lines(tmp_path / "none")


def test_examples_keep_their_line(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "a"}, {"prompt": "b", "chosen": "good", "rejected": "bad"})
    (line, first), (other, second) = read_examples(path)
    assert (line, len(first.answers), other, [answer.content for answer in second.answers]) == (
        1,
        0,
        2,
        ["good", "bad"],
    )
