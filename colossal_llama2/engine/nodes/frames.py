"""What a launcher and its hosts say to one another: one JSON object a line, in both directions.

From the launcher: first the job, then ``{}`` every few seconds, and ``{"stop": signal, "grace": seconds}``.
From a host: ``{"ready": ...}``, lines of output, ``{}`` every few seconds, and ``{"done": ...}`` at the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

BEAT_SECONDS = 2.0
BEAT: dict[str, Any] = {}
RANK_MARK = "\x1e${rank}\x1e"  # torchrun puts it before each line of a rank; no text has a record separator
_MARKED = re.compile("\x1e(\\d+)\x1e")


def encode(frame: dict[str, Any]) -> bytes:
    """Write a frame."""
    return json.dumps(frame).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any] | None:
    """Read a line; None when it is no frame, as when a login script prints a greeting."""
    try:
        frame = json.loads(line)
    except ValueError:
        return None
    return frame if isinstance(frame, dict) else None


class Lines:
    """Cuts a stream of bytes into lines; the last one may lack its end until `rest` is asked for."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes, return the lines that are whole now, without their ends."""
        *whole, self._left = (self._left + data).split(b"\n")
        return whole

    def rest(self) -> bytes:
        """Return what came after the last line end."""
        rest, self._left = self._left, b""
        return rest


class RankLines:
    """Sorts the output of torchrun by rank: it marks the lines of its ranks, and prints lines of its own between them.

    A rank's line may come in several pieces with other ranks' pieces between; every rank is put together by itself.
    """

    def __init__(self) -> None:
        self._pending: dict[int | None, str] = {}

    def feed(self, line: bytes) -> Iterator[tuple[int | None, str]]:
        """Take a line without its end; yield (rank, text) of each that is whole, with None for torchrun itself."""
        parts = _MARKED.split(line.decode("utf-8", errors="replace"))
        speaker: int | None = None
        for index, part in enumerate(parts):
            if index % 2:
                speaker = int(part)
            elif part or index == len(parts) - 1:
                self._pending[speaker] = self._pending.get(speaker, "") + part
        yield speaker, self._pending.pop(speaker, "")

    def rest(self) -> Iterator[tuple[int | None, str]]:
        """Yield what never got its line end."""
        yield from sorted(self._pending.items(), key=str)
        self._pending = {}
