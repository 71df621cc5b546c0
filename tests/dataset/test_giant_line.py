"""A giant line: what the exact parser says of any line, word for word, and every text character for character."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset.giant_line import GiantLine, scan_line
from colossal_llama2.dataset.json_text import decode_stream
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import parse_record

# What lines are made of, good and bad; joined at random they are mostly wrong, in every way.
FRAGMENTS = [
    *(bytes([byte]) for byte in b'{}[]:,"\\ \t\rabu0123deE.+-'),
    "字".encode(), "é".encode(), "😀".encode(), b"\xe5\xad", b"\xf0\x9f", b"\xff", b"\xed\xa0\x80", b"\x00", b"\x1f",
    rb"\n", rb"\"", rb"\\", rb"\/", rb"\x", rb"\u", rb"\u4e2d", rb"\u00", rb"\ud83d", rb"\ude00", rb"\ud83d\ude00",
    b'"a"', b'"target":', b'"source":', b"true", b"null", b"NaN", b"-Infinity", b"1e999", b"01", b"\x7f", rb"\u0022",
    b'{"target": "', b'", "source": "', b'"}', "中文字的世界".encode(), b'"long enough to be replaced"',
]  # fmt: skip
SOUP = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map(b"".join)
INSIDE = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map(b"".join)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    TEXT | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def in_blocks(raw: bytes, size: int) -> Iterator[bytes]:
    return (raw[begin : begin + size] for begin in range(0, len(raw), size))


def resolve(value: Any, giant: GiantLine, raw: bytes, part: int) -> Any:
    """Put the texts back."""
    if isinstance(value, str) and value in giant.strings:
        where = giant.strings[value]
        stream = io.BytesIO(raw)
        stream.seek(where.start)
        parts = list(decode_stream(stream.read, where.end - where.start, part))
        assert all(text is not None for text in parts)
        text = "".join(text for text in parts if text is not None)
        assert len(text) == where.characters
        return text
    if isinstance(value, list):
        return [resolve(item, giant, raw, part) for item in value]
    if isinstance(value, dict):
        return {resolve(name, giant, raw, part): resolve(item, giant, raw, part) for name, item in value.items()}
    return value


def compare(raw: bytes, block: int, held: int) -> None:
    raw = raw.replace(b"\n", b"")
    stripped = raw.strip(b" \t\r\n")
    try:
        expected: Any = parse_record(stripped, Path("f"), 3) if stripped else None
    except InputError as error:
        expected = error
    try:
        giant = scan_line(in_blocks(raw, block), Path("f"), 3, held)
        found = giant and resolve(giant.fields, giant, raw, block + 1)
    except InputError as error:
        found = error
    if isinstance(expected, InputError) and "stands twice" in expected.what:
        assert isinstance(found, InputError)
        assert "stands twice" in found.what  # a long name is not written out
    elif isinstance(expected, InputError):
        assert str(found) == str(expected)
        assert isinstance(found, InputError)
    else:
        assert found == expected


SIZES = {"block": st.integers(1, 40), "held": st.integers(0, 12)}


@settings(max_examples=250, deadline=None)
@given(raw=SOUP, **SIZES)
@example(raw=b'{"\\u0061bcdefgh": 1, "abcdefgh": 2}', block=7, held=6)
@example(raw=b'"\t', block=1, held=0)
@example(raw=b'"abc\\ude00', block=1, held=0)
@example(raw=b'"abc\\u4e2d', block=1, held=0)
@example(raw=b'{"a": "b" \t\r \t}\t ', block=2, held=0)
@example(raw=b'{"abcdefgh": 1, "\\u0061bcdefgh": 2}', block=3, held=7)
def test_any_bytes_are_judged_alike(raw: bytes, block: int, held: int) -> None:
    compare(raw, block, held)


@settings(max_examples=250, deadline=None)
@given(inside=INSIDE, **SIZES)
@example(inside=rb"aaaaaaaaaaaaaaaaaaaa\ud83d\u12G4", block=100, held=1)
@example(inside=rb"aaaaaaaaaa\\\\\\\ude00aaaa\ud83d\ude00", block=3, held=1)
@example(inside=rb"aaaaaaaa\ud83daaaaaaaaa\ude00aaaaaaaa", block=9, held=1)
def test_any_text_is_judged_alike(inside: bytes, block: int, held: int) -> None:
    compare(b'{"target": "' + inside + b'", "more": [1, "\xe4\xb8\xad"]}', block, held)


@settings(max_examples=100, deadline=None)
@given(record=st.dictionaries(TEXT, VALUES, max_size=4), escaped=st.booleans(), **SIZES)
def test_every_record_comes_back(record: dict[str, Any], escaped: bool, block: int, held: int) -> None:
    compare(b" " + json.dumps(record, ensure_ascii=escaped).encode() + b"\r", block, held)


def test_more_than_texts_is_refused_with_its_size() -> None:
    numbers = b'{"numbers": [' + b"1, " * 5000 + b"1]}"
    with pytest.raises(InputError, match=r"f:7: a line of 15,\d+ bytes of which more than 0 MiB are no long text;"):
        scan_line(in_blocks(numbers, 512), Path("f"), 7, skeleton_bytes=1000)
    with pytest.raises(InputError, match=r'which begins with "\[", not with a record'):
        scan_line(in_blocks(b"[" + numbers, 512), Path("f"), 7, skeleton_bytes=1000)
