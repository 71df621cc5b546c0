"""Chunks hold every record once, under its number, whatever the file is written in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset.conversation_files import first_chunk, read_chunk, recognise_file, split_files
from colossal_llama2.dataset.inputs import find_inputs
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import iterate_lines


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.sampled_from([b"", b"{}", b"x" * 30, b"\r", b" \t", "你".encode()]), max_size=30),
    ends=st.booleans(),
    bom=st.booleans(),
    size=st.integers(1, 60),
)
def test_every_line_is_read_once(tmp_path: Path, lines: list[bytes], ends: bool, bom: bool, size: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + b"\n".join(lines) + (b"\n" if ends else b""))
    chunks = split_files(find_inputs([str(path)])[0], ["messages"], size)
    found = [line for chunk in chunks for line in read_chunk(chunk)]
    with path.open("rb") as file:
        assert found == list(iterate_lines(file))
    assert [chunk.end for chunk in chunks[:-1]] == [chunk.start for chunk in chunks[1:]]
    first = first_chunk(find_inputs([str(path)])[0][0], 0, "messages", size)
    assert (first.start, first.end) == ((0, chunks[0].end) if chunks else (0, 0))


RECORDS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"你好 {n}\u2028"}, {"role": "assistant", "content": "x" * n}], "n": n}
    for n in range(40)
]


def write_records(path: Path, records: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    table = pa.Table.from_pylist(records)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=7)
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    elif path.suffix == ".jsonl":
        path.write_bytes(text)
    else:
        with pa.CompressedOutputStream(str(path), {".gz": "gzip", ".zst": "zstd"}[path.suffix]) as stream:
            stream.write(text)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow"])
def test_every_kind_of_file_holds_the_same_records(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colossal_llama2.dataset.conversation_files._PACKED_CHUNK_BYTES", 100)
    path = tmp_path / f"a.{suffix}"
    write_records(path, RECORDS)
    (file,), _ = find_inputs([str(path)])
    assert recognise_file(file, False) == "messages"
    chunks = split_files([file], ["messages"], 300)
    assert len(chunks) > 3
    found = [(line, json.loads(raw)) for chunk in chunks for line, raw in read_chunk(chunk)]
    assert found == list(enumerate(RECORDS, 1))
    sample = list(read_chunk(first_chunk(file, 0, "messages", 300)))
    assert 0 < len(sample) < 10


@pytest.mark.parametrize("suffix", ["jsonl.gz", "parquet"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write_records(path, RECORDS)
    path.write_bytes(path.read_bytes()[:-20])
    (file,), _ = find_inputs([str(path)])
    with pytest.raises(InputError, match=rf"a\.{suffix}: is damaged or cut off"):
        [list(read_chunk(chunk)) for chunk in split_files([file], ["messages"])]


def test_a_file_without_a_layout_has_no_chunks(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    (file,), _ = find_inputs([str(tmp_path)])
    assert recognise_file(file, False) is None
    assert split_files([file], [None]) == []


def test_the_first_record_says_the_layout(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"prompt": "x"}\n{"messages": []}')
    (file,), _ = find_inputs([str(path)])
    assert recognise_file(file, False) == "prompt"
    path.write_text('{\n{"text": "x"}\n{"messages": []}')
    assert recognise_file(file, True) == "messages"
    with pytest.raises(InputError, match=r"a\.jsonl:1: not JSON.*--bad_records skip"):
        recognise_file(file, False)
    path.write_text('{"text": "x"}')
    with pytest.raises(InputError, match=r"a\.jsonl:1: is a record of no layout that is known.*prompt/completion"):
        recognise_file(file, False)
    assert recognise_file(file, True) is None
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        recognise_file(file, False)
