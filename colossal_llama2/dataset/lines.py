"""Lines of jsonl: where a file is cut, and the blocks of whole lines in which it is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from colossal_llama2.errors import InputError

BLOCK_BYTES = 4 << 20


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


def read_blocks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield the lines that begin in the bytes [start, end) of a file, many at a time and whole."""
    if start:
        file.seek(start - 1)
        rest = file.read(1)
        while rest and not rest.endswith(b"\n"):  # a line that began before the range
            rest = file.readline(BLOCK_BYTES)
        start = file.tell()
    carry = b""
    while start < end and (block := file.read(min(BLOCK_BYTES, end - start))):
        start += len(block)
        cut = block.rfind(b"\n") + 1
        if cut:
            yield carry + block[:cut]
            carry = block[cut:]
        else:
            carry += block
    if carry:
        yield carry + file.readline()
