"""Ways for a run to end early: a signal that asks for it, and numbers that cannot be gone on with."""

from __future__ import annotations

import signal
from types import FrameType

EXIT_STOPPED = 128 + signal.SIGTERM


class StopRequest:
    """Remembers a SIGTERM, so that the loop can save and leave between two steps.

    Schedulers and `torchrun` send SIGTERM before they kill; what is lost then is nothing at all.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before = signal.signal(signal.SIGTERM, self._remember)

    def close(self) -> None:
        """Give the signal back to whoever had it."""
        signal.signal(signal.SIGTERM, self._before)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


class NonFiniteError(RuntimeError):
    """Loss or gradients are no longer numbers; the message names the step, its rows and the checkpoint to return to."""
