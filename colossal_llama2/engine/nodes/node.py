"""A host while it takes part in a start, and how the start ended."""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from colossal_llama2.engine.nodes import frames


@dataclass(frozen=True)
class Outcome:
    """How a start ended.

    Attributes:
        code: exit code for the launcher.
        problem: what went wrong, in one line; empty when nothing did, or when a rank has said it already.
        traceback: of the rank that failed first, if it left one.
        may_restart: it was a failure, not a user's mistake and not a stop that was asked for.
        is_unreachable: a host did not answer at all: a mistake at first, but not once it has answered before.
    """

    code: int
    problem: str = ""
    traceback: str = ""
    may_restart: bool = False
    is_unreachable: bool = False


@dataclass
class Node:
    """A host while it takes part.

    Attributes:
        label: its name in the output.
        command: what starts the watchdog there.
        ready: what the watchdog said when it was there.
        done: what it said at the end.
        gone: its connection has ended.
    """

    label: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    ready: dict[str, Any] | None = None
    done: dict[str, Any] | None = None
    gone: bool = False
    heard: float = 0.0
    complaints: list[str] = field(default_factory=list)
    _unsent: bytearray = field(default_factory=bytearray, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # the launcher's beat has its own thread

    def tell(self, frame: dict[str, Any]) -> None:
        """Send a frame, after what an earlier one left; what the connection does not take now waits for `send`."""
        with self._lock:
            self._unsent += frames.encode(frame)
        self.send()

    def send(self) -> bool:
        """Send what is waiting, as far as the connection takes it; tell whether something is left.

        A pipe takes 64 KiB, and a job with a long command line is more. Never blocks: a host that does not listen
        must not keep the others waiting, and will be noticed by its silence.
        """
        assert self.process is not None
        assert self.process.stdin is not None
        with self._lock:
            try:
                while self._unsent:
                    del self._unsent[: os.write(self.process.stdin.fileno(), self._unsent)]
            except BlockingIOError:
                pass
            except (OSError, ValueError):  # nobody reads any more, or the connection was closed here
                self._unsent.clear()
            return bool(self._unsent)

    def close(self) -> None:
        """End the connection; a watchdog that can still hear ends its job then."""
        if self.process is None or self.process.stdin is None:
            return
        with self._lock, suppress(OSError):  # the lock: a number that is free again may become another file's
            self.process.stdin.close()
