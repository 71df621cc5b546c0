"""Ctrl-C and its relatives, for a launcher that has to end things in order."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType


class StopSignals:
    """Remembers SIGINT, SIGTERM and SIGHUP for the supervisor; one that was ignored before (nohup) stays ignored.

    Args:
        grace: seconds that ranks have after SIGTERM and SIGHUP, to save a checkpoint.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.number: int | None = None
        self.count = 0
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a host that is gone must not take the launcher with it
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._remember)

    def wait(self, seconds: float) -> bool:
        """Wait, unless a signal has come or comes; tell whether one has."""
        deadline = time.monotonic() + seconds
        while self.number is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.number is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.number = signal.SIGTERM if number == signal.SIGHUP else number
        self.count += 1
        if number == signal.SIGHUP:  # the terminal is gone, and writing to it would fail
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
