"""Parts: rows come back as they went in, for us, for pyarrow and for `datasets`, and the bytes never vary."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset.parts import COLUMNS, PartReader, PartWriter, Row, part_name

ROWS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), max_size=600)


def rows_of(lengths: Sequence[Sequence[int]]) -> list[Row]:
    rows = []
    for number, seq_lens in enumerate(lengths):
        ids = np.arange(sum(seq_lens), dtype=np.int32) + 1000 * number
        rows.append(Row(ids, np.where(ids % 2 == 0, -100, ids).astype(np.int32), np.array(seq_lens, dtype=np.int32)))
    return rows


def write(folder: Path, rows: Sequence[Row], bucket: int = 0) -> Path:
    for name in ("arrow", "jsonl"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with PartWriter(folder / "arrow", folder / "jsonl", bucket) as writer:
        for row in rows:
            writer.write(row)
    return folder / "arrow" / part_name(bucket)


@settings(deadline=None, max_examples=25)
@given(lengths=ROWS)
def test_rows_come_back(lengths: list[list[int]]) -> None:
    rows = rows_of(lengths)
    with tempfile.TemporaryDirectory() as work:
        reader = PartReader(write(Path(work), rows))
        lines = [json.loads(line) for line in Path(work, "jsonl", "part-00000.jsonl").read_text().splitlines()]
        assert len(reader) == len(rows) == len(lines)
        for number, (row, line) in enumerate(zip(rows, lines, strict=True)):
            found = reader.row(number)
            for name in COLUMNS:
                assert getattr(found, name).dtype == np.int32
                assert getattr(found, name).tolist() == getattr(row, name).tolist() == line[name]


def test_datasets_reads_a_part(tmp_path: Path) -> None:
    import datasets

    rows = rows_of([[2, 3]] * 300)
    dataset = datasets.load_from_disk(str(write(tmp_path, rows, bucket=12)))
    assert dataset.column_names == list(COLUMNS)
    assert {str(dataset.features[name].feature.dtype) for name in COLUMNS} == {"int32"}
    assert dataset[299] == {name: getattr(rows[299], name).tolist() for name in COLUMNS}


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    folders = [write(tmp_path / place, rows_of([[4, 1]] * 5)) for place in ("one", "another")]
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"]
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_an_error_leaves_no_part_that_datasets_would_read(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        (tmp_path / "arrow").mkdir()
        (tmp_path / "jsonl").mkdir()
        with PartWriter(tmp_path / "arrow", tmp_path / "jsonl", 0) as writer:
            writer.write(rows_of([[1]])[0])
            raise KeyError
    assert not (tmp_path / "arrow" / "part-00000" / "state.json").exists()


def test_other_columns_and_broken_files_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, rows_of([[4, 1]] * 5))
    path = folder / "data-00000-of-00001.arrow"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"nonsense" * 50):
        path.write_bytes(content)
        with pytest.raises((OSError, ValueError)):
            PartReader(folder)
    table = pa.table({"input_ids": [[1, 2]], "labels": [[1, 2]], "seq_lens": [[2]]})  # int64
    with pa.ipc.new_stream(str(path), table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(ValueError, match="lists of int32"):
        PartReader(folder)


def test_readers_hold_no_file_open(tmp_path: Path) -> None:
    folder = write(tmp_path, rows_of([[4, 1]] * 5))
    before = len(list(Path("/dev/fd").iterdir()))
    readers = [PartReader(folder) for _ in range(20)]
    assert len(list(Path("/dev/fd").iterdir())) < before + 10
    assert {tuple(reader.row(4).input_ids.tolist()) for reader in readers} == {tuple(range(4000, 4005))}
