"""Lines: refused with file and line whatever the segments, and read in parts where they are giant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.dataset.inputs import find_inputs, split_into_shards
from colossal_llama2.dataset.reading import GiantRecord, Reading, Refusal, read_segment
from colossal_llama2.errors import InputError

BAD_LINES = [
    (b'{"target": "x', "not JSON (Unterminated string starting at column 12)"),
    (b'[{"target": "x"}]', "holds a JSON list, not an object"),
    (b'{"target": "x", "target": "y"}', 'the name "target" stands twice in one record'),
    (b'{"target": "\\ud800"}', "half a surrogate pair (\\ud800) is not a character"),
    (b'{"target": "x\xff"}', "not UTF-8 (byte 0xff at column 14)"),
    ('{"target": "中文"}'.encode("gbk"), "not UTF-8 (byte 0xd6 at column 13)"),
    (b'{"target": NaN}', "NaN is not JSON"),
    (b'{"target": 1}', '"target" is a JSON int'),
    (b'{"target": ""}', '"target" is empty, so there is nothing to learn'),
    (b'{"target": "x\x00"}', "not JSON (Invalid control character at column 14)"),
    (b"\xef\xbb\xbf{}", "not JSON (Unexpected UTF-8 BOM (decode using utf-8-sig) at column 1)"),
    (b'{"txt": "x"}', 'no "target" in the record'),
]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("kind", ["f.jsonl", "f.jsonl.gz", "f.jsonl.zst"])
@pytest.mark.parametrize("shard_bytes", [1, 50, 1 << 20])
def test_bad_lines_are_listed_with_their_lines(
    kind: str, ending: bytes, shard_bytes: int, tmp_path: Path, files: Any
) -> None:
    good = b'{"target": "a\\u0000\\n\\ud83d\\ude00", "category": "b"}'
    content = ending.join([b"\xef\xbb\xbf" + good, b"", *(line for line, _ in BAD_LINES), b" \t", good])
    path = tmp_path / kind
    write = {"f.jsonl": Path.write_bytes, "f.jsonl.gz": files.write_gz, "f.jsonl.zst": files.write_zst}[kind]
    write(path, content)
    documents, refusals = files.read(path, Reading(skip_bad_records=True), shard_bytes)
    assert documents == [("", "a\0\n😀", "b")] * 2
    assert refusals == [Refusal(kind, number, reason) for number, (_, reason) in enumerate(BAD_LINES, 3)]
    with pytest.raises(InputError, match=rf"{kind}:3: not JSON .*, or pass --bad_records skip"):
        files.read(path, shard_bytes=shard_bytes)


GIANTS: list[dict[str, Any]] = [
    {"target": "first"},
    {"target": '中文😀\n\\"' * 40, "source": "问" * 200, "category": "g"},
    {"target": "between", "source": "x"},
    {"target": "y" * 300, "category": "z" * 30},
    {"target": "w" * 280},
    {"target": "last"},
]


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("shard_bytes", [20, 300, 1 << 20])
@pytest.mark.parametrize("kind", ["jsonl", "gz", "zst"])
@pytest.mark.usefixtures("small_limits")
def test_giant_lines_come_in_parts(kind: str, shard_bytes: int, escaped: bool, tmp_path: Path, files: Any) -> None:
    bad = b'{"target": "' + b"x" * 400 + b'", "n": 1, "n": 2}\n'
    content = b"".join(json.dumps(record, ensure_ascii=escaped).encode() + b"\r\n" for record in GIANTS)
    content = b"\xef\xbb\xbf" + b" " * 400 + b"\n" + bad + content + b'{"target": "' + b"v" * 500 + b'"}'
    path = tmp_path / ("f.jsonl" if kind == "jsonl" else f"f.jsonl.{kind}")
    {"jsonl": Path.write_bytes, "gz": files.write_gz, "zst": files.write_zst}[kind](path, content)
    documents, refusals = files.read(path, Reading(skip_bad_records=True), shard_bytes)
    assert documents == [*files.expected(GIANTS), ("", "v" * 500, "unknown")]
    assert refusals == [Refusal(path.name, 2, 'the name "n" stands twice in one record')]


@pytest.mark.usefixtures("small_limits")
def test_a_giant_line_may_begin_a_file_with_a_byte_order_mark(tmp_path: Path, files: Any) -> None:
    record = {"source": "s" * 100, "target": "t" * 300}
    (tmp_path / "f.jsonl").write_bytes(b"\xef\xbb\xbf" + files.jsonl([record]))
    assert files.read(tmp_path / "f.jsonl") == (files.expected([record]), [])


def test_a_changed_giant_line_is_noticed(tmp_path: Path, small_limits: None, files: Any) -> None:
    (tmp_path / "f.jsonl").write_bytes(files.jsonl([{"target": "x" * 500}]))
    [shard] = split_into_shards(find_inputs([str(tmp_path)])[0])
    [giant] = read_segment(shard.segments[0], Reading(), [])
    assert isinstance(giant, GiantRecord)
    assert ["".join(giant.target_chunks()) for _ in range(2)] == ["x" * 500] * 2
    (tmp_path / "f.jsonl").write_bytes(files.jsonl([{"target": "x" * 300}]))
    with pytest.raises(InputError, match="was changed while it was read"):
        "".join(giant.target_chunks())
