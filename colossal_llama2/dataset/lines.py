"""Lines of jsonl: where a file is cut, and the blocks of whole lines in which it is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from colossal_llama2.errors import InputError

BLOCK_BYTES = 1 << 20  # what is done to a block stays in the processor
MAX_LINE_BYTES = 16 << 20  # parsed whole, such a line takes up to five times its size


def unreadable(path: Path, error: OSError) -> InputError:
    """Turn the system's refusal to read a file into the user's mistake."""
    return InputError(f"cannot be read ({error.strerror})", path=path)


def cut_at_lines(path: Path, shard_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of parts of about `shard_bytes`, each beginning where a line does.

    Reads a few bytes at each cut; inside a line that is longer than a part, it reads on to the line's end.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            start = 0
            while start < size:
                end = _next_line(file, start + shard_bytes, size)
                yield start, end
                start = end
    except OSError as error:
        raise unreadable(path, error) from None


def _next_line(file: BinaryIO, place: int, size: int) -> int:
    """Return where the first line begins at or behind a place, or the file's size."""
    if not place:
        return 0
    at = place - 1  # a newline just ahead of the place means that a line begins there
    step = 1 << 12
    while at < size:
        file.seek(at)
        block = file.read(step)
        if not block:
            break
        found = block.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(block)
        step = min(step * 4, BLOCK_BYTES)
    return size


def count_lines_before(path: Path, place: int) -> int:
    """Count the lines that begin before a place of a file; takes up the count where it was left for the same file.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        status = path.stat()
        counts = _counts(str(path), status.st_size, status.st_mtime_ns)
        known = max(at for at in counts if at <= place)
        newlines = counts[known]
        with path.open("rb", buffering=0) as file:
            file.seek(known)
            remaining = place - known
            while remaining > 0 and (block := file.read(min(remaining, 1 << 20))):
                newlines += block.count(b"\n")
                remaining -= len(block)
            counts[place] = newlines
            if not place:
                return 0
            file.seek(place - 1)
            return newlines + (file.read(1) not in (b"\n", b""))
    except OSError as error:
        raise unreadable(path, error) from None


@lru_cache(maxsize=16)
def _counts(path: str, size: int, modified: int) -> dict[int, int]:
    """Newlines ahead of places of a file: without it, naming one line in each shard would read a file many times."""
    return {0: 0}


@dataclass(frozen=True)
class LongLine:
    """A line too long to be held; its blocks must be taken before what comes after it.

    Attributes:
        start: where it begins in the stream.
        blocks: its bytes, without the line feed.
    """

    start: int
    blocks: Iterator[bytes]


def line_bounds(file: BinaryIO, start: int, end: int, size: int) -> tuple[int, int]:
    """Return the bytes of the lines that begin in [start, end): both moved to where the next line begins."""
    return _next_line(file, start, size), _next_line(file, end, size)


def read_lines(stream: BinaryIO, start: int, end: int | None, max_bytes: int) -> Iterator[bytes | LongLine]:
    """Yield a stream's lines from here on, many at a time and whole; a line longer than `max_bytes` by itself.

    Args:
        stream: stands where a line begins.
        start: where that is.
        end: where the last line ends; None for the stream's end.
        max_bytes: a longer line is not held.
    """
    reader = _Reader(stream, start, end)
    carry = b""
    while block := reader.read():
        first, cut = block.find(b"\n"), block.rfind(b"\n") + 1
        if len(carry) + (first if cut else len(block)) > max_bytes:
            reader.unread(block)
            rest = _LineRest(carry, reader)
            yield LongLine(reader.at - len(carry), iter(rest))
            for _ in rest:  # whoever asked had no use for all of it
                pass
            carry = b""
            reader.unread(rest.behind)
        elif cut:
            yield carry + block[:cut]
            carry = block[cut:]
        else:
            carry += block
    if carry:
        yield carry


class _Reader:
    """A stream in blocks, up to a place; what was read too far can be put back."""

    def __init__(self, stream: BinaryIO, start: int, end: int | None) -> None:
        self.at = start
        self._stream, self._end = stream, end
        self._back = b""

    def read(self) -> bytes:
        """Return the next block; empty at the end."""
        block, self._back = self._back, b""
        if not block:
            size = BLOCK_BYTES if self._end is None else min(BLOCK_BYTES, self._end - self.at)
            block = self._stream.read(size) if size else b""
        self.at += len(block)
        return block

    def unread(self, block: bytes) -> None:
        """Put the end of the last block back."""
        self._back = block
        self.at -= len(block)


class _LineRest:
    """The blocks of a line whose beginning is known; `behind` is what was read beyond its end."""

    def __init__(self, known: bytes, reader: _Reader) -> None:
        self._known, self._reader = known, reader
        self._done = False
        self.behind = b""

    def __iter__(self) -> Iterator[bytes]:
        if self._known:
            known, self._known = self._known, b""
            yield known
        while not self._done and (block := self._reader.read()):
            head, found, behind = block.partition(b"\n")
            if found:
                self._done, self.behind = True, behind
            yield head
