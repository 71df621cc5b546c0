"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from colossal_llama2 import cli
from colossal_llama2.chat.spending import Spending

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Shows how many items are done and what was spent."""

    def __init__(self, spending: Spending) -> None:
        self._spending = spending
        self._bar: Any = None
        self._what, self._total, self._done = "", 0, 0
        self._said = time.monotonic()

    def begin(self, total: int, what: str) -> None:
        """Begin to count anew."""
        self.close()
        self._what, self._total, self._done = what, total, 0
        self._bar = tqdm(total=total, desc=what, disable=not sys.stderr.isatty(), leave=False)

    def step(self) -> None:
        """Count one item."""
        self._done += 1
        self._bar.update()
        self._bar.set_postfix_str(self._spent(), refresh=False)
        if self._bar.disable and time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            cli.say(f"{self._what}: {self._done} of {self._total}, {self._spent()}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def _spent(self) -> str:
        cost = self._spending.cost
        tokens = self._spending.prompt_tokens + self._spending.completion_tokens
        return f"{self._spending.requests} requests, {tokens:,} tokens" + ("" if cost is None else f", cost {cost:.4f}")
