"""The fast way from lines to records: orjson, and a test whether it can be trusted with a line.

orjson refuses all that the exact way refuses, but for two things: of a name that stands twice it keeps the last value
silently, and it allows more nesting. Both show when quotes are counted: an object with k names and s strings in it is
written with 2 (k + s) quotes that no backslash escapes, so that a name it dropped leaves some over. Whatever fails or
is not plain goes the exact way, which alone refuses. Quotes are counted for a block of lines at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

MAX_DEPTH = 100  # the exact way can follow this far on any stack
_MAX_BACKSLASHES = 64  # in one run ahead of a quote; more are not counted
_SMALL_BYTES = 2048  # a corpus may be of a million small files
_QUOTE, _LINE_FEED, _BACKSLASH = 34, 10, 92


def parse_block(block: bytes, lines: list[bytes]) -> list[dict[str, Any] | None]:
    """Parse lines; each gives the object that `jsonl.parse_record` would, or None where only that can tell.

    Args:
        block: the lines, as they lie in the file; a byte order mark is not taken away.
        lines: the same, apart.
    """
    found: list[dict[str, Any] | None] = []
    loads = orjson.loads
    for raw, quotes in zip(lines, count_quotes(block), strict=True):
        try:
            fields = loads(raw)
        except orjson.JSONDecodeError:
            found.append(None)
            continue
        if type(fields) is not dict:
            found.append(None)
            continue
        strings = len(fields)
        for value in fields.values():
            if type(value) is str:
                strings += 1
            elif type(value) is dict or type(value) is list:
                strings += _count_strings(value, 1)
        found.append(fields if quotes == strings + strings else None)
    return found


def count_quotes(block: bytes) -> list[int]:
    """Count the quotes of each line that no backslash escapes; all are -1 where that takes too long."""
    if len(block) < _SMALL_BYTES and b'\\\\"' not in block:
        lines = block.removesuffix(b"\n").split(b"\n")
        return [line.count(b'"') - line.count(b'\\"') for line in lines]
    bytes_ = np.frombuffer(block, dtype=np.uint8)
    places = np.flatnonzero((bytes_ == _QUOTE) | (bytes_ == _LINE_FEED))
    is_end = bytes_[places] == _LINE_FEED
    escaped = _are_escaped(bytes_, places)
    if escaped is None:
        return [-1] * (block.count(b"\n") + (not block.endswith(b"\n")))
    counts = np.cumsum(~(is_end | escaped))
    at_ends = counts[is_end]
    if not block.endswith(b"\n"):
        at_ends = np.append(at_ends, counts[-1:] if len(counts) else 0)
    per_line: list[int] = np.diff(at_ends, prepend=0).tolist()
    return per_line


def _are_escaped(bytes_: npt.NDArray[np.uint8], places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
    """Tell which places stand behind an odd number of backslashes; None where a run of them is very long.

    Before the block's first byte comes its last one here: that can mislead only in a line that begins with a quote or a
    backslash, which is no object.
    """
    escaped = bytes_[places - 1] == _BACKSLASH
    deeper = np.flatnonzero(escaped)
    for distance in range(2, _MAX_BACKSLASHES):
        deeper = deeper[bytes_[(places[deeper] - distance) % len(bytes_)] == _BACKSLASH]
        if not len(deeper):
            return escaped
        escaped[deeper] = distance % 2 == 1
    return None


def _count_strings(value: Any, depth: int) -> int:
    """Count the strings in a value, names among them; a number that fits no line where it is nested too deeply."""
    if depth > MAX_DEPTH:
        return -(1 << 60)
    strings = 0
    parts = value
    if type(value) is dict:
        strings = len(value)
        parts = value.values()
    for part in parts:
        if type(part) is str:
            strings += 1
        elif type(part) is dict or type(part) is list:
            strings += _count_strings(part, depth + 1)
    return strings
