r"""The inside of a JSON string in parts: where it may be cut, and what text a part is.

A part must not end inside a UTF-8 sequence, inside an escape (``\n``, ``\u4e2d``), or between the two escapes of a
surrogate pair.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import orjson

_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
_ESCAPE_BYTES = 6  # \uXXXX, the longest


def safe_cut(raw: bytes, start: int, end: int) -> int:
    """Return the last place at or before `end` where what begins at `start` may be cut; `start` itself is one.

    At most 15 bytes before `end`, where the text is sound.
    """
    place = raw.rfind(b"\\", max(start, end - _ESCAPE_BYTES + 1), end)
    if place >= 0 and opens_escape(raw, start, place):
        complete = place + (_ESCAPE_BYTES if raw[place + 1 : place + 2] == b"u" else 2)
        if complete > end:
            return _before_high_surrogate(raw, start, place)
    return _before_high_surrogate(raw, start, _before_sequence(raw, start, end))


def opens_escape(raw: bytes, start: int, place: int) -> bool:
    """Tell whether the backslash at `place` begins an escape: behind an even number of backslashes, from `start` on."""
    first = place
    while first > start and raw[first - 1] == 0x5C:
        first -= 1
    return (place - first) % 2 == 0


def decode_part(raw: bytes) -> str | None:
    """Return a part's text, or None where it is not UTF-8, not JSON, or holds half a surrogate pair."""
    try:
        text = orjson.loads(b'"%b"' % raw)
    except orjson.JSONDecodeError:
        return None
    return text if isinstance(text, str) else None


def decode_stream(read: Callable[[int], bytes], num_bytes: int, part_bytes: int) -> Iterator[str | None]:
    """Yield the text of the next `num_bytes` of a stream, part by part; None where it cannot be decoded."""
    carry = b""
    while num_bytes:
        block = read(min(part_bytes, num_bytes))
        if not block:
            yield None
            return
        num_bytes -= len(block)
        raw = carry + block
        cut = safe_cut(raw, 0, len(raw)) if num_bytes else len(raw)
        carry = raw[cut:]
        yield decode_part(raw[:cut])


def _before_high_surrogate(raw: bytes, start: int, end: int) -> int:
    begin = end - _ESCAPE_BYTES
    if begin >= start and _HIGH_SURROGATE.fullmatch(raw, begin, end) and opens_escape(raw, start, begin):
        return begin
    return end


def _before_sequence(raw: bytes, start: int, end: int) -> int:
    """Return `end`, or where the UTF-8 sequence begins that is cut there."""
    for length in range(1, 4):
        place = end - length
        if place < start or raw[place] < 0x80:
            return end
        if raw[place] >= 0xC0:
            whole = 2 if raw[place] < 0xE0 else 3 if raw[place] < 0xF0 else 4
            return place if whole > length else end
    return end
