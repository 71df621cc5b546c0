"""The fast way against the exact way: the same record, or None; never another record, never one too many."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset.fast_lines import MAX_DEPTH, count_quotes, parse_block
from colossal_llama2.dataset.records import Reading, Record, parse_pretraining_record, quick_chooser
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import parse_record

NAMES = st.sampled_from(["target", "source", "text", "category", "meta", "a", 'q"', "b\\", "字", ""])
TEXT = st.text(st.sampled_from('ab"\\/\n\t 字é😀u0022\x00\x7f\u2028'), max_size=12)
NUMBERS = st.sampled_from(["0", "-1", "12345678901234567890123", "1e5", "1E400", "-0.5", "01", "NaN", "1" * 320])
SPACE = st.sampled_from(["", "", "", " ", "\t", "\r", " \r", "\x0b", "\xa0"])


def written(text: str, draw: Callable[[Any], Any]) -> str:
    """Write a string in one of the ways JSON has for it, some of them wrong."""
    way = draw(st.sampled_from(["plain", "ascii", "codes", "raw"]))
    if way == "codes":
        units = text.encode("utf-16-be", "surrogatepass")
        return '"' + "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2)) + '"'
    return f'"{text}"' if way == "raw" else json.dumps(text, ensure_ascii=way == "ascii")


@st.composite
def values(draw: Callable[[Any], Any], depth: int = 0) -> str:
    kind = draw(st.sampled_from(["text", "text", "number", "word", "list", "object"] if depth < 3 else ["text"]))
    if kind == "text":
        return written(draw(TEXT), draw)
    if kind == "number":
        return str(draw(NUMBERS))
    if kind == "word":
        return str(draw(st.sampled_from(["true", "null", "Infinity", "nul"])))
    if kind == "list":
        parts = draw(st.lists(values(depth + 1), max_size=3))
        return "[" + draw(SPACE) + f"{draw(SPACE)},".join(parts) + "]"
    return str(draw(objects(depth + 1)))


@st.composite
def objects(draw: Callable[[Any], Any], depth: int = 0) -> str:
    members = draw(st.lists(st.tuples(NAMES, values(depth)), max_size=5))
    inside = ",".join(
        f"{draw(SPACE)}{written(name, draw)}{draw(SPACE)}:{draw(SPACE)}{value}{draw(SPACE)}" for name, value in members
    )
    return "{" + inside + "}"


@st.composite
def lines(draw: Callable[[Any], Any]) -> bytes:
    line = draw(SPACE) + draw(objects()) + draw(SPACE)
    raw = line.encode("utf-8", "surrogatepass").replace(b"\n", b"")
    damage = draw(st.sampled_from(["none", "none", "none", "cut", "drop", "byte"]))
    place = draw(st.integers(0, len(raw)))
    if damage == "cut":
        return raw[:place]
    if damage == "drop":
        return raw[:place] + raw[place + 1 :]
    return raw[:place] + bytes([draw(st.integers(0, 255))]).strip(b"\n") + raw[place:] if damage == "byte" else raw


def exactly(raw: bytes) -> dict[str, Any] | InputError | None:
    stripped = raw.strip(b" \t\r\n")
    try:
        return parse_record(stripped, Path("f"), 1) if stripped else None
    except InputError as error:
        return error


def same(left: Any, right: Any) -> bool:
    """Tell whether two values are equal and of one kind; of integers beyond 64 bits orjson makes floats."""
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same(left[name], right[name]) for name in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and type(right) is int:
        return left == float(right)
    return type(left) is type(right) and left == right


def fast(raw: bytes) -> dict[str, Any] | None:
    [found] = parse_block(raw + b"\n", [raw])
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(block=st.lists(lines(), min_size=1, max_size=3), final=st.booleans(), is_small=st.booleans())
@example(block=[rb'{"a":"\"","a":1}'], final=True, is_small=True)
@example(block=[rb'{"a":1,"\u0061":2}'], final=True, is_small=True)
@example(block=[rb'{"a":"\\","a":""}', rb'{"a":"\\\""}'], final=False, is_small=True)
@example(block=[rb'{"a":{"b":"x","b":2},"c":"\\"}', rb'"a', rb'{"a":[{"b":1,"b":1}]}'], final=True, is_small=True)
def test_the_fast_way_gives_what_the_exact_way_gives_or_nothing(
    block: list[bytes], final: bool, is_small: bool
) -> None:
    block = block if is_small else [b"x" * 3000, *block]
    if not final and not block[-1]:
        block = [*block, b"{}"]
    results = parse_block(b"\n".join(block) + b"\n" * final, block)
    assert len(results) == len(block)
    for raw, found in zip(block, results, strict=True):
        expected = exactly(raw)
        if found is not None:
            assert isinstance(expected, dict)
            assert same(found, expected)


@settings(max_examples=200, deadline=None)
@given(record=st.dictionaries(NAMES, TEXT | st.lists(TEXT, max_size=3) | st.dictionaries(NAMES, TEXT, max_size=3)))
@example(record={"text": '"' * 30, "source": "\\" * 30, "target": '\\"' * 3})
def test_sound_records_go_the_fast_way(record: dict[str, Any]) -> None:
    for escaped in (True, False):
        assert fast(json.dumps(record, ensure_ascii=escaped).encode()) == record


@given(lines=st.lists(st.text('"\\ a').map(str.encode), min_size=1), is_small=st.booleans())
def test_quotes_are_those_that_no_backslash_escapes(lines: list[bytes], is_small: bool) -> None:
    lines = lines if is_small else [*lines, b"x" * 3000]
    lines = [b"{" + line for line in lines]
    expected = [re.sub(rb"\\.", b"", line).count(b'"') for line in lines]
    assert count_quotes(b"\n".join(lines) + b"\n") == count_quotes(b"\n".join(lines)) == expected


def test_very_many_backslashes_are_left_to_the_exact_way() -> None:
    lines = [b'{"a": "' + b"\\" * 10_000 + b'"}', b"{}"]
    assert parse_block(b"\n".join(lines), lines) == [None, None]
    assert exactly(lines[0]) == {"a": "\\" * 5_000}


def test_depth_is_left_to_the_exact_way_long_before_it_gives_up() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a": ' + b"[" * depth + b"]" * depth + b"}"

    assert fast(nested(MAX_DEPTH)) is not None
    assert fast(nested(MAX_DEPTH + 1)) is None
    assert isinstance(exactly(nested(MAX_DEPTH)), dict)
    assert sys.getrecursionlimit() > 3 * MAX_DEPTH


READINGS = [
    Reading(),
    Reading(text_field="text"),
    Reading(target_field="text", source_field="a"),
    Reading(target_field="target"),
    Reading(category_field="source", default_category="d"),
]
FIELDS = st.dictionaries(NAMES, st.sampled_from(["", "x", "y y", None, 3, ["x"]]))


@settings(max_examples=200, deadline=None)
@given(fields=FIELDS, number=st.integers(0, len(READINGS) - 1))
def test_the_quick_choice_is_the_exact_one(fields: dict[str, Any], number: int) -> None:
    reading = READINGS[number]
    found = quick_chooser(reading, None)(fields)
    try:
        expected = parse_pretraining_record(json.dumps(fields).encode(), Path("f"), 1, reading)
    except InputError:
        assert found is None
    else:
        assert found is None or Record(*found) == expected
        plain = all(isinstance(fields.get(name, ""), str) for name in ("source", "category"))
        assert found is not None or not plain or "text" in fields


@pytest.mark.parametrize("name", ["file", "folder"])
def test_a_category_from_the_name_needs_none_in_the_record(name: Any) -> None:
    choose = quick_chooser(Reading(category_from=name), "zh")
    assert choose({"target": "x", "category": None}) == ("", "x", "zh")
