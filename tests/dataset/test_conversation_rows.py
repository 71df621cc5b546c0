"""Parts: an SFT part is, byte for byte, a part of a corpus; the others are read by datasets."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest

from colossal_llama2.dataset.conversation_rows import PREFERENCE_COLUMNS, PROMPT_COLUMNS, SFT_COLUMNS, SetWriter
from colossal_llama2.dataset.parts import PartReader, PartWriter, Row


def row(first: int, lengths: list[int]) -> Row:
    ids = np.arange(first, first + sum(lengths), dtype=np.int32)
    return Row(ids, np.where(ids % 2, ids, -100).astype(np.int32), np.array(lengths, dtype=np.int32))


def test_an_sft_part_is_a_part_of_a_corpus(tmp_path: Path) -> None:
    for name in ("ours", "theirs", "jsonl"):
        (tmp_path / name).mkdir()
    rows = [row(number, [1 + number % 5, 3]) for number in range(300)]
    with SetWriter(tmp_path / "ours", 3, SFT_COLUMNS) as ours:
        for one in rows:
            ours.write(one.input_ids, one.labels, one.seq_lens)
    with PartWriter(tmp_path / "theirs", tmp_path / "jsonl", 3) as theirs:
        for one in rows:
            theirs.write(one)
    files = sorted(path.name for path in (tmp_path / "theirs" / "part-00003").iterdir())
    assert len(files) == 3
    for name in files:
        expected = (tmp_path / "theirs" / "part-00003" / name).read_bytes()
        assert (tmp_path / "ours" / "part-00003" / name).read_bytes() == expected
    reader = PartReader(tmp_path / "ours" / "part-00003")
    assert len(reader) == 300
    assert reader.row(299).input_ids.tolist() == rows[299].input_ids.tolist()


def test_preferences_and_prompts_are_read_by_datasets(tmp_path: Path) -> None:
    with SetWriter(tmp_path, 0, PREFERENCE_COLUMNS) as writer:
        writer.write([1, 2, 3], [-100, 2, 3], [2, 1], [0, 1])
        writer.write([4], [4], [1], [1])
    read = datasets.load_from_disk(str(tmp_path / "part-00000"))
    assert read[0] == {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "seq_lens": [2, 1], "ranks": [0, 1]}
    assert len(read) == 2
    with SetWriter(tmp_path, 1, PROMPT_COLUMNS) as writer:
        writer.write([1, 2], "你好", '{"prompt": "你好"}')
    read = datasets.load_from_disk(str(tmp_path / "part-00001"))
    assert list(read) == [{"prompt_ids": [1, 2], "text": "你好", "record": '{"prompt": "你好"}'}]


def test_a_part_that_fails_is_left_without_its_description(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), SetWriter(tmp_path, 0, PROMPT_COLUMNS) as writer:
        writer.write([1], "a", "b")
        raise RuntimeError("stop")
    assert not (tmp_path / "part-00000" / "state.json").exists()
