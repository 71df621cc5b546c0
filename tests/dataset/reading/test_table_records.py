"""Rows of parquet and Arrow: refused with file and row, and read in parts where they are giant."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colossal_llama2.dataset.inputs import find_inputs, first_line_number, split_into_shards
from colossal_llama2.dataset.reading import GiantRecord, Reading, read_segment
from colossal_llama2.errors import InputError

TABLES = [
    "parquet",
    "parquet large",
    "arrow",
    "arrow stream",
    "arrow view",
    "arrow large",
    "arrow words",
    "arrow view words",
]


@pytest.mark.parametrize("shard_bytes", [1, 1 << 20])
@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow stream"])
def test_bad_rows_are_listed_with_their_rows(kind: str, shard_bytes: int, tmp_path: Path, files: Any) -> None:
    target = pa.array([b"a", None, b"", b"x\xff", b"b", b"\xed\xa0\x80", b"c"], pa.binary()).view(pa.string())
    source = pa.array(["s", "s", "s", "s", None, "s", ""])
    table = pa.table({"target": target, "source": source})
    path = tmp_path / f"f.{kind.split()[0]}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        with (pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream)(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    documents, refusals = files.read(path, Reading(skip_bad_records=True), shard_bytes)
    assert documents == [("s", "a", "unknown"), ("", "b", "unknown"), ("", "c", "unknown")]
    assert [(refusal.line, refusal.reason) for refusal in refusals] == [
        (2, '"target" is null'),
        (3, '"target" is empty, so there is nothing to learn'),
        (4, '"target" is not UTF-8 (byte 0xff at byte 2)'),
        (6, '"target" is not UTF-8 (byte 0xed at byte 1)'),
    ]
    with pytest.raises(InputError, match=rf'f\.{kind.split()[0]}: row 2: "target" is null; .*--bad_records skip'):
        files.read(path, shard_bytes=shard_bytes)


@pytest.mark.parametrize(
    ("columns", "reading", "complaint"),
    [
        ({"txt": ["x"]}, Reading(), 'no column "target" among txt; name the column with --text_field'),
        ({"target": ["x"], "text": ["y"]}, Reading(), 'both "target" and "text" in the table'),
        ({"source": ["x"], "text": ["y"]}, Reading(), '"source" and "text" in the table, but no "target"'),
        ({"target": [1]}, Reading(), 'the column "target" holds int64, not strings'),
        ({"target": ["x"], "category": [[1]]}, Reading(), 'the column "category" holds list'),
        ({"text": ["x"]}, Reading(text_field="body"), 'no column "body" among text'),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_a_table_without_the_columns_is_refused_as_a_whole(
    columns: dict[str, Any], reading: Reading, complaint: str, skip: bool, tmp_path: Path, files: Any
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    with pytest.raises(InputError) as caught:
        files.read(tmp_path / "f.parquet", Reading(skip, reading.text_field))
    assert str(caught.value).startswith(f"{tmp_path / 'f.parquet'}: {complaint}")


GIANTS: list[dict[str, Any]] = [
    {"target": "first"},
    {"target": '中文😀\n\\"' * 40, "source": "问" * 200, "category": "g"},
    {"target": "between", "source": "x"},
    {"target": "y" * 300, "category": "z" * 30},
    {"target": "w" * 280},
    {"target": "last"},
]


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.usefixtures("small_limits")
def test_giant_rows_come_in_parts(kind: str, tmp_path: Path, files: Any) -> None:
    path = files.writers[kind](tmp_path, GIANTS)
    assert files.read(path) == (files.expected(GIANTS), [])
    [shard] = split_into_shards(find_inputs([str(path)])[0])
    found = list(read_segment(shard.segments[0], Reading(), []))
    assert sum(isinstance(batch, GiantRecord) for batch in found) == 3


@pytest.mark.usefixtures("small_limits")
def test_a_giant_row_that_is_no_text_is_refused(tmp_path: Path, files: Any) -> None:
    target = pa.array([b"x" * 300 + b"\xff", b"fine", b"", None], pa.binary()).view(pa.string())
    source = pa.array([None, None, "s" * 400, "s" * 400])
    pq.write_table(pa.table({"target": target, "source": source}), tmp_path / "f.parquet")
    documents, refusals = files.read(tmp_path / "f.parquet", Reading(skip_bad_records=True))
    assert documents == [("", "fine", "unknown")]
    assert [(refusal.line, refusal.reason) for refusal in refusals] == [
        (1, '"target" is not UTF-8 (byte 0xff at byte 301)'),
        (3, '"target" is empty, so there is nothing to learn'),
        (4, '"target" is null'),
    ]


def test_the_first_line_or_row_of_a_segment_is_known(tmp_path: Path, files: Any) -> None:
    records = [{"target": f"the fox {number}"} for number in range(9)]
    for kind in ("parquet", "arrow", "arrow stream"):
        path = files.writers[kind](tmp_path, records)
        shards = split_into_shards(find_inputs([str(path)])[0], 1)
        assert [first_line_number(shard.segments[0]) for shard in shards] == [1, 3, 5, 7, 9]


def test_a_folder_of_datasets_is_read(tmp_path: Path, files: Any) -> None:
    import datasets

    records = [{"text": f"the fox {number}"} for number in range(5)]
    datasets.Dataset.from_list(records).save_to_disk(str(tmp_path / "saved"))
    found, ignored = find_inputs([str(tmp_path / "saved")])
    assert [file.kind for file in found] == ["arrow"]
    assert sorted(ignored) == ["saved/dataset_info.json", "saved/state.json"]
    assert files.read(tmp_path / "saved")[0] == [("", record["text"], "unknown") for record in records]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow stream", "arrow words"])
def test_whatever_bytes_are_changed_it_is_read_or_refused(kind: str, tmp_path: Path, files: Any) -> None:
    draw = random.Random(4)
    records = [{"target": f"the fox {number}" * (number % 5 + 1), "category": "ab"[number % 2]} for number in range(20)]
    path = files.writers[kind](tmp_path, records)
    whole = path.read_bytes()
    outcomes = set()
    for _ in range(80):
        content = bytearray(whole)
        for _ in range(draw.choice([1, 1, 20])):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            files.read(path, Reading(skip_bad_records=True))
            outcomes.add("read")
        except InputError as error:
            outcomes.add(str(error).partition(": ")[0])
    assert outcomes == {"read", str(path)}
