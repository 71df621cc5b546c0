"""Odd files of a corpus, one for each thing that can be wrong or unusual in one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

RECORDS: list[dict[str, str]] = [
    {"source": "", "target": "今天天气很好，我们去公园。", "category": "zh"},
    {"source": "请问：", "target": "你好！\n再见。", "category": "qa"},
    {"source": "Question: what is 7 times 8?", "target": " It is 56.", "category": "en"},
    {"source": "", "target": "龘靐齉爩 😀 \u200b\u2028 e\u0301 \u00a0end", "category": "zh"},
    {"source": "", "target": "</s><s><unk> are characters of text", "category": "en"},
    {"source": "", "target": " " * 40 + "\t\t indented", "category": ""},
]


def write_odd_files(folder: Path) -> list[Path]:
    """Write them; the same on every call. Each holds records beside what is odd, or nothing at all."""
    folder.mkdir(parents=True)
    plain = _lines(RECORDS)
    contents: dict[str, bytes] = {
        **_of_bytes(plain),
        **_of_json(plain),
        **_of_records(),
        "plain.jsonl.gz": gzip.compress(plain, mtime=0),
        "two_members.jsonl.gz": gzip.compress(plain, mtime=0) + gzip.compress(plain, mtime=0),
        "plain.jsonl.zst": _zstd(plain),
        "two_frames.jsonl.zst": _zstd(plain) + _zstd(plain),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    _write_tables(folder)
    return sorted(folder.iterdir())


def _of_bytes(plain: bytes) -> dict[str, bytes]:
    """What is odd in bytes and lines."""
    return {
        "plain.jsonl": plain,
        "empty.jsonl": b"",
        "only_blank_lines.jsonl": b"\n \r\n\t\n",
        "byte_order_mark.jsonl": b"\xef\xbb\xbf" + plain,
        "byte_order_mark_in_the_middle.jsonl": plain + b"\xef\xbb\xbf" + plain,
        "only_byte_order_mark.jsonl": b"\xef\xbb\xbf",
        "crlf.jsonl": plain.replace(b"\n", b"\r\n"),
        "byte_order_mark_and_crlf.jsonl": b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"),
        "blank_lines.jsonl": b"\n\n" + plain.replace(b"\n", b"\n \t\r\n\n"),
        "no_end_of_last_line.jsonl": plain.rstrip(b"\n"),
        "truncated_last_line.jsonl": plain + plain[: len(plain) // 7],
        "truncated_inside_a_character.jsonl": plain + '{"target": "今天'.encode()[:-1],
        "raw_nul.jsonl": plain + b'{"target": "a\x00b"}\n' + b"\x00\n" + plain,
        "escaped_nul.jsonl": plain + b'{"target": "a\\u0000b"}\n',
        "invalid_utf8.jsonl": plain + b'{"target": "\xff\xfe"}\n{"target": "\xc0\xaf"}\n' + plain,
        "encoded_surrogates.jsonl": plain + b'{"target": "\xed\xa0\xbd\xed\xb8\x80"}\n',
        "gbk.jsonl": plain.decode().encode("gb18030") + _lines([RECORDS[2]]),
        "utf16.jsonl": plain.decode().encode("utf-16") + b"\n" + plain,
        "carriage_returns_alone.jsonl": plain.replace(b"\n", b"\r"),
        "line_separators_in_text.jsonl": _lines([{"target": "one\u2028two\u2029three\x85four\x0bfive\x0csix"}]),
    }


def _of_json(plain: bytes) -> dict[str, bytes]:
    """What is odd in json."""
    array = json.dumps(RECORDS, ensure_ascii=False).encode()
    pretty = json.dumps(RECORDS, ensure_ascii=False, indent=1).encode()
    return {
        "array_on_one_line.jsonl": array + b"\n" + plain,
        "array_over_lines.jsonl": pretty + b"\n" + plain,
        "escaped.jsonl": b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS),
        "lone_surrogates.jsonl": plain + b'{"target": "\\ud83d"}\n{"target": "\\ude00\\ud83d"}\n'
        b'{"target": "ok", "other": "\\udc00"}\n{"target": "ok", "\\udc00": 1}\n{"target": "\\ud83d\\ude00"}\n',
        "duplicate_keys.jsonl": plain + b'{"target": "a", "target": "a"}\n{"target": "a", "o": {"x": 1, "x": 1}}\n'
        b'{"target": "a", "t\\u0061rget": "b"}\n{"target": "a", "o": [{"x": 1}, {"x": 1}]}\n',
        "nan.jsonl": plain + b'{"target": "a", "score": NaN}\n{"target": "a", "score": -Infinity}\n'
        b'{"target": "a", "score": [1e5, {"deep": Infinity}]}\n{"target": "a", "score": 1.5e-7}\n',
        "not_objects.jsonl": plain + b'"text"\n17\nnull\ntrue\n[]\n{}\n',
        "broken.jsonl": plain + b'{\'target\': \'a\'}\n{"target": "a",}\n{"target": "a"} x\n'
        b'{"target": "a"}{"target": "b"}\n{"target": "tab\there"}\n{"target": "\\x41"}\n// {"target": "a"}\n',
    }


def _of_records() -> dict[str, bytes]:
    """What is odd in fields."""
    odd: list[dict[str, Any]] = [
        {"target": 5}, {"target": None}, {"target": ["a"]}, {"target": {"a": "b"}}, {"target": True}, {"target": ""},
        {"source": "only"}, {"source": None, "target": "a"}, {"source": 1, "target": "a"},
        {"target": "a", "category": None}, {"target": "a", "category": 3}, {"target": "a", "category": ""},
        {"text": "a", "target": "b"}, {"text": "a", "source": "b"}, {"text": "a", "source": ""}, {"text": ""},
        {"text": None}, {"content": "a"}, {"Target": "a"}, {"target": "a", "extra": {"deep": [1, None, "b"]}},
    ]  # fmt: skip
    return {
        "wrong_types.jsonl": _lines(odd) + _lines(RECORDS),
        "plain_text_records.jsonl": _lines([{"text": record["target"]} for record in RECORDS]),
        "a_category_a_line.jsonl": _lines([{"target": f"line {n}", "category": f"category {n}"} for n in range(1500)]),
        "one_record.jsonl": _lines(RECORDS[:1]),
        "tiny_records.jsonl": _lines([{"target": "今"}] * 3000),
        "long_source.jsonl": _lines([{"source": "背景。" * 9000, "target": "完", "category": "long"}]),
        "long_target.jsonl": _lines([{"source": "", "target": "很长的一段话，" * 9000, "category": "long"}]),
        "no_spaces.jsonl": _lines([{"target": "龘" * 5000}, {"target": "x" * 5000}, {"target": " " * 5000}]),
    }


def _write_tables(folder: Path) -> None:
    table = pa.Table.from_pylist(RECORDS)
    nulls: list[dict[str, Any]] = [
        {"source": None, "target": "no source", "category": "zh"},
        {"source": "no target", "target": None, "category": "zh"},
        {"source": "no category", "target": " here", "category": None},
        {"source": "empty", "target": "", "category": "en"},
    ]
    with_nulls = pa.concat_tables([table, pa.Table.from_pylist(nulls, table.schema), table])
    pq.write_table(table, folder / "plain.parquet")
    pq.write_table(with_nulls, folder / "nulls_in_row_groups.parquet", row_group_size=3)
    pq.write_table(table.slice(0, 0), folder / "no_rows.parquet")
    large = table.cast(pa.schema([(name, pa.large_string()) for name in table.column_names]))
    coded = table.set_column(2, "category", table.column("category").dictionary_encode())
    with pa.ipc.new_file(str(folder / "file.arrow"), large.schema) as writer:
        writer.write_table(large)
    with pa.ipc.new_stream(str(folder / "stream.arrow"), with_nulls.schema) as writer:
        writer.write_table(with_nulls, max_chunksize=4)
    with pa.ipc.new_stream(str(folder / "dictionary.arrow"), coded.schema) as writer:
        writer.write_table(coded)


def _lines(records: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def _zstd(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))
