"""Reading jsonl: what is accepted, and that every complaint names file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import iterate_lines, parse_record, read_jsonl, string_field

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@given(st.lists(st.dictionaries(TEXTS, TEXTS | st.none() | st.integers() | st.lists(TEXTS)), max_size=5))
@settings(max_examples=100)
def test_what_is_written_is_read_whatever_the_line_endings(records: list[dict[str, object]]) -> None:
    for ascii_only in (True, False):
        for ending in ("\n", "\r\n", "\n\n  \n"):
            for mark in (b"", b"\xef\xbb\xbf"):
                lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
                content = mark + ending.join(lines).encode()
                parsed = [
                    parse_record(raw, Path("x"), n) for n, raw in iterate_lines(content.splitlines(keepends=True))
                ]
                assert parsed == records


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\n{"a": 1}\r\n\n\n{"a": 2}')
    assert list(read_jsonl(path)) == [(2, {"a": 1}), (5, {"a": 2})]


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    """Unicode's own line separators may stand in a string, and Python's splitlines would cut there."""
    record = {"target": "a\u2028b\u0085c\x0bd"}
    path = write(tmp_path / "a.jsonl", json.dumps(record, ensure_ascii=False).encode() + b"\n")
    assert list(read_jsonl(path)) == [(1, record)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"not json", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b"[1]", "JSON list"),
        (b"null", "JSON NoneType"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        ('{"a": "中文"}'.encode("gbk"), "not UTF-8"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
    ],
)
def test_what_is_not_a_record_is_named(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = write(tmp_path / "bad.jsonl", b'{"fine": 1}\n' + line + b"\n")
    with pytest.raises(InputError, match=complaint) as caught:
        list(read_jsonl(path))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)


def test_a_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"a": "\\ud83d\\ude00"}')
    assert list(read_jsonl(path)) == [(1, {"a": "😀"})]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        list(read_jsonl(tmp_path / "absent.jsonl"))


@pytest.mark.parametrize(("record", "complaint"), [({}, 'no "t"'), ({"t": None}, "null"), ({"t": 3}, "JSON int")])
def test_a_field_of_the_wrong_kind_is_named(record: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        string_field(record, "t", Path("x"), 4)


def test_a_missing_field_takes_its_default() -> None:
    assert string_field({}, "category", Path("x"), 1, default="unknown") == "unknown"
    assert string_field({"category": ""}, "category", Path("x"), 1, default="unknown") == ""
