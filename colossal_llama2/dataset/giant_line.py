"""One line of JSON of any size, in bounded memory: its long strings are checked in passing, the rest is kept.

What remains when every long string is replaced by a short one is the line's skeleton. The skeleton goes through the
exact parser, so that structure, names, other values and complaints are what they are for any line; what was replaced is
read again from the file, part by part, when its text is wanted. Where a long string is faulty, the fault itself stays
in the skeleton, for the parser to find.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama2.dataset.json_text import decode_part, opens_escape, safe_cut
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import parse_record

HELD_CHARACTERS = 1 << 16
SKELETON_BYTES = 16 << 20
_FAULT_CHARACTERS = 24
_LAST_BYTES = 12
_BLANK = b" \t\r\n"
_BLANKS_HELD = 1 << 20
_BYTES_A_CHARACTER = 12  # two escapes of a surrogate pair


@dataclass(frozen=True)
class LongString:
    """Where a long string lies, in bytes from the line's beginning, and how long its text is."""

    start: int
    end: int
    characters: int


@dataclass(frozen=True)
class GiantLine:
    """What is known of a line when it has been scanned.

    Attributes:
        fields: the record; a long string in it is a key of `strings`.
        strings: the long strings.
    """

    fields: dict[str, Any]
    strings: dict[str, LongString]


def scan_line(
    blocks: Iterable[bytes],
    path: Path,
    line: int,
    held_characters: int = HELD_CHARACTERS,
    skeleton_bytes: int = SKELETON_BYTES,
) -> GiantLine | None:
    """Scan a line that comes in blocks; a blank one is None.

    Args:
        blocks: the line's bytes, without its line feed and without a byte order mark.
        path: the file it stands in, for the complaint.
        line: its number.
        held_characters: a longer string is replaced.
        skeleton_bytes: how large what remains may be.

    Raises:
        InputError: not a record (see `jsonl.parse_record`), or too much of it is no long string.
    """
    scanner = _Scanner(held_characters, skeleton_bytes)
    for block in blocks:
        scanner.feed(block)
    scanner.finish()
    skeleton = bytes(scanner.skeleton.rstrip(_BLANK))
    if not skeleton:
        return None
    if scanner.overflowed:
        raise InputError(
            f"a line of {scanner.seen:,} bytes of which more than {skeleton_bytes >> 20} MiB are no long text"
            + ("" if skeleton.startswith(b"{") else f', and which begins with "{chr(skeleton[0])}", not with a record'),
            path=path,
            line=line,
            remedy="write one record a line, and only long texts in long records",
        )
    return GiantLine(parse_record(skeleton, path, line, scanner), scanner.strings)


class _Scanner:
    """Follows a line through strings and the space between them.

    Attributes:
        skeleton: what is kept.
        strings: what was replaced, by what stands for it.
        seen: bytes of the line so far.
        overflowed: the skeleton is full, and nothing is kept any more.
    """

    def __init__(self, held_characters: int, skeleton_bytes: int) -> None:
        self.skeleton = bytearray()
        self.strings: dict[str, LongString] = {}
        self.seen = 0
        self.overflowed = False
        self._held_characters, self._skeleton_bytes = held_characters, skeleton_bytes
        self._nonce = os.urandom(12).hex()  # what stands for a string must be no string of the line
        self._pending = self._blanks = b""
        self._inside = False
        self._string = _String(0)
        # Places in the skeleton behind which so many characters and bytes of the line are missing.
        self._places, self._characters, self._bytes = [0], [0], [0]

    def feed(self, block: bytes) -> None:
        """Take the line's next bytes; blanks wait until it is known that they do not end the line."""
        block = self._blanks + block
        sound = block.rstrip(_BLANK)
        self._blanks = block[len(sound) :] if len(block) - len(sound) < _BLANKS_HELD else b""
        block = block[: len(block) - len(self._blanks)]
        if not self.skeleton and not self._inside:
            stripped = block.lstrip(_BLANK)  # columns count from the first byte that is not blank
            self.seen += len(block) - len(stripped)
            block = stripped
        data = self._pending + block
        begin = self.seen - len(self._pending)
        self.seen += len(block)
        if self.overflowed:
            return
        self._pending = b""
        at = 0
        while at < len(data):
            at = self._inside_string(data, at, begin) if self._inside else self._outside(data, at, begin)
        self.overflowed = len(self.skeleton) > self._skeleton_bytes

    def finish(self) -> None:
        """Take the end of the line; a string that is still open stays open."""
        if self._inside:
            self._close_string(self.seen - len(self._pending))
            self.skeleton += self._pending

    def byte_column(self, column: int) -> int:
        """Return a byte's column in the line from that in the skeleton, both counted from 1."""
        return column + self._bytes[bisect_right(self._places, column - 1) - 1]

    def character_column(self, column: int) -> int:
        """Return a character's column in the line from that in the skeleton, both counted from 1."""
        place = len(self.skeleton.decode("utf-8")[: column - 1].encode())
        return column + self._characters[bisect_right(self._places, place) - 1]

    def _outside(self, data: bytes, at: int, begin: int) -> int:
        quote = data.find(b'"', at)
        if quote < 0:
            self.skeleton += data[at:]
            return len(data)
        self.skeleton += data[at : quote + 1]
        self._inside, self._string = True, _String(begin + quote + 1)
        return quote + 1

    def _inside_string(self, data: bytes, at: int, begin: int) -> int:
        quote = data.find(b'"', at)
        while quote > at and data[quote - 1] == 0x5C and opens_escape(data, at, quote - 1):
            quote = data.find(b'"', quote + 1)
        if quote < 0:
            # An escape that the line's end follows has a complaint of its own: the last ones must be there to be seen.
            cut = safe_cut(data, at, max(at, len(data) - _LAST_BYTES))
            self._pending = data[cut:]
            self._add(data[at:cut])
            return len(data)
        self._add(data[at:quote])
        self._close_string(begin + quote)
        self.skeleton += b'"'
        self._inside = False
        return quote + 1

    def _add(self, part: bytes) -> None:
        string = self._string
        if not string.long:
            string.held += part
            if len(string.held) <= _BYTES_A_CHARACTER * self._held_characters:
                return
            part, string.held, string.long = bytes(string.held), bytearray(), True
        text = decode_part(part)
        if text is None:
            fault = _find_fault(part)
            self._miss(part[: fault.start])
            if not (fault.is_surrogate and string.is_faulty):  # two halves of pairs would make a pair
                self.skeleton += fault.shown
                self._shift(-len(fault.shown.decode("utf-8", "replace")), -len(fault.shown))
            self._miss(part[fault.start :])
            string.is_faulty = True
        else:
            self._miss(part)
            string.characters += len(text)
            string.digest.update(text.encode())

    def _miss(self, part: bytes) -> None:
        """Note that a part of the line is not in the skeleton."""
        self._shift(len(part.decode("utf-8", "replace")), len(part))

    def _shift(self, characters: int, num_bytes: int) -> None:
        self._places.append(len(self.skeleton))
        self._characters.append(self._characters[-1] + characters)
        self._bytes.append(self._bytes[-1] + num_bytes)

    def _close_string(self, end: int) -> None:
        string = self._string
        if not string.long and len(string.held) > self._held_characters:
            # By its characters, however they are written: one name must be replaced alike wherever it stands.
            text = decode_part(bytes(string.held))
            if text is not None and len(text) > self._held_characters:
                part, string.held, string.long = bytes(string.held), bytearray(), True
                self._add(part)
        if string.long:
            name = f"{self._nonce}{string.digest.hexdigest()}"
            self.strings[name] = LongString(string.start, end, string.characters)
            self.skeleton += name.encode()
            self._shift(-len(name), -len(name))
        else:
            self.skeleton += string.held


class _String:
    """A string that is being read."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.held = bytearray()
        self.long = False
        self.is_faulty = False
        self.characters = 0
        self.digest = hashlib.sha256()


@dataclass(frozen=True)
class _Fault:
    """What is wrong in a part of a string.

    Attributes:
        start: bytes ahead of it.
        shown: what makes the exact parser complain of the same at the same place.
        is_surrogate: it is half a surrogate pair.
    """

    start: int
    shown: bytes
    is_surrogate: bool = False


def _find_fault(part: bytes) -> _Fault:
    try:
        text = part.decode("utf-8")
    except UnicodeDecodeError as error:
        return _Fault(error.start, part[error.start : error.start + 4])
    try:
        decoded = json.loads(f'"{text}"')
    except json.JSONDecodeError as error:
        place = len(text[: error.pos - 1].encode())
        start = safe_cut(part, 0, max(0, place - _FAULT_CHARACTERS))
        shown = text[len(part[:start].decode()) : error.pos + _FAULT_CHARACTERS]
        return _Fault(start, f"{shown}\0".encode())  # what follows must not complete a broken escape
    try:
        decoded.encode("utf-8")
    except UnicodeEncodeError as error:
        return _Fault(len(part), f"\\u{ord(decoded[error.start]):04x}".encode(), is_surrogate=True)
    raise AssertionError("a part that one parser refuses and the other accepts")
