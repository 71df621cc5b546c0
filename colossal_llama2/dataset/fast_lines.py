"""The fast way from a line to a record: orjson, and a test whether it can be trusted with the line.

orjson refuses all that the exact way refuses, but for two things: of a name that stands twice it keeps the last value
silently, and it allows more nesting. Both show when quotes are counted: a record of k names and s strings is written
with 2 (k + s) quotes and one for each quote inside a string, so a dropped name leaves some over. Whatever fails, or is
not plain, goes the exact way, which alone refuses.
"""

from __future__ import annotations

from typing import Any

import orjson

MAX_DEPTH = 100  # the exact way can follow this far on any stack


def parse_fast(raw: bytes) -> dict[str, Any] | None:
    """Return the object that a line holds, as `jsonl.parse_record` would; or None where only that can tell.

    Args:
        raw: the line's bytes; a byte order mark is not taken away.
    """
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    if type(fields) is not dict:
        return None
    quotes = raw.count(b'"')
    if b"\\" not in raw:
        inside = 0
    else:
        quotes += _quotes_as_code(raw)
        inside = 1
    strings = len(fields)
    for name, value in fields.items():
        if inside:
            quotes -= name.count('"')
        if type(value) is str:
            strings += 1
            if inside:
                quotes -= value.count('"')
        elif type(value) is dict or type(value) is list:
            counted = _count(value, 1)
            if counted is None:
                return None
            strings += counted[0]
            quotes -= counted[1]
    return fields if quotes == 2 * strings else None


def _quotes_as_code(raw: bytes) -> int:
    r"""Count the quotes that are written as \u0022; a count that can fit no record where that is not certain."""
    codes = raw.count(b"\\u0022")
    return -1 << 60 if codes and b"\\\\u0022" in raw else codes


def _count(value: Any, depth: int) -> tuple[int, int] | None:
    """Count the strings in a value, names among them, and the quotes in those; None where it is nested too deeply."""
    if depth > MAX_DEPTH:
        return None
    strings = quotes = 0
    parts: Any = value
    if type(value) is dict:
        strings = len(value)
        quotes = sum(name.count('"') for name in value)
        parts = value.values()
    for part in parts:
        if type(part) is str:
            strings += 1
            quotes += part.count('"')
        elif type(part) is dict or type(part) is list:
            counted = _count(part, depth + 1)
            if counted is None:
                return None
            strings += counted[0]
            quotes += counted[1]
    return strings, quotes
