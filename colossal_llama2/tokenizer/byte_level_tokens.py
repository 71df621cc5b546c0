"""Tokens that may end or begin inside a character: their text, their name, and the characters they can be part of."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Final

from colossal_llama2.tokenizer.byte_level_model import to_bytes
from colossal_llama2.tokenizer.piece_model import SPACE_MARK

_LAST_CHARACTER: Final = 0x10FFFF


def text_of(token: str) -> str:
    """Return the text of a token given in letters; bytes that are no whole character become lone surrogates.

    No two tokens have the same text, and no character of a text that can be encoded is a surrogate.
    """
    return to_bytes(token).decode("utf-8", "surrogateescape")


def name_of(token: str) -> str:
    """Write a token as pieces are written: a space is ``▁``, a byte that is no whole character ``<0xE4>``."""
    text = text_of(token).replace(" ", SPACE_MARK)
    return "".join(f"<0x{ord(one) - 0xDC00:02X}>" if 0xDC80 <= ord(one) <= 0xDCFF else one for one in text)


@lru_cache(maxsize=1 << 18)
def torn_ends(token: str) -> int:
    """Rate how a token lies on characters: 0 on whole ones, 1 ending inside one, 2 beginning inside one, 3 both.

    Beginning inside is worse: such a token comes out in any script, where one that begins a character names it.
    """
    begin, _, end = _cut(token)
    return 2 * bool(begin) + bool(end)


def may_stand(token: str, allows: Callable[[str], bool]) -> bool:
    """Tell whether a token on the way to others may be made, from what may be made of whole characters.

    A token is found only where all its bytes stand. Where it holds a whole character of which pieces may be made, or
    where pieces may be made of every character that its torn end can belong to, it is harmless. Bytes from the inside
    of characters alone, which could stand in any script, are never made into one.

    Args:
        token: in letters.
        allows: says of a text whether a token in between may stand for it.
    """
    if not allows(text_of(token)):
        return False
    begin, whole, end = _cut(token)
    if not whole and not end:
        return False
    if not begin and not end:
        return True
    if whole and allows(whole):
        return True
    torn = [characters(part, at_start) for part, at_start in ((begin, False), (end, True)) if part]
    return any(all(map(allows, candidates)) for candidates in torn)


@cache
def characters(part: bytes, at_start: bool) -> str:
    """Return every character whose UTF-8 begins (or ends) with these bytes and has more of them.

    Args:
        part: bytes of one character: a lead byte and what follows it, or the last bytes of a character.
        at_start: whether they are its beginning.
    """
    if at_start:
        rest = max(_length_of(part[0]) - len(part), 0)
        first, last = (_code_point(part + bytes([filler]) * rest) for filler in (0x80, 0xBF))
        codes = range(first, min(last, _LAST_CHARACTER) + 1)
    else:
        bits = 6 * len(part)
        codes = range(_code_point(b"\0" + part), _LAST_CHARACTER + 1, 1 << bits)
    fits = bytes.startswith if at_start else bytes.endswith
    found = (chr(code).encode("utf-8", "replace") for code in codes)
    return b"".join(raw for raw in found if fits(raw, part) and len(raw) > len(part)).decode()


def _cut(token: str) -> tuple[bytes, str, bytes]:
    """Cut a token into the end of a character, whole characters, and the beginning of one; any may be empty."""
    raw = to_bytes(token)
    begin = 0
    while begin < len(raw) and 0x80 <= raw[begin] < 0xC0:
        begin += 1
    end = len(raw)
    for back in range(1, min(4, end - begin) + 1):
        if not 0x80 <= raw[-back] < 0xC0:
            if _length_of(raw[-back]) > back:
                end -= back
            break
    return raw[:begin], raw[begin:end].decode("utf-8", "replace"), raw[end:]


def _length_of(lead: int) -> int:
    return 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


def _code_point(raw: bytes) -> int:
    """Read one character's bytes as the number they hold, whether or not it is a character."""
    number = raw[0] & (0xFF >> (len(raw) + 1)) if raw[0] else 0
    for byte in raw[1:]:
        number = number << 6 | byte & 0x3F
    return number
