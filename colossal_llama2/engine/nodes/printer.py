"""What many ranks print, on one terminal: every line says where it comes from."""

from __future__ import annotations

import sys
import time
from collections import deque

_HOLD_SECONDS = 4.0


class Printer:
    """Prints lines with the host and rank before them.

    Lines of torchrun itself are held back for a moment: when the run ends in it by a user's mistake, the one line
    that says so is enough.

    Args:
        name_hosts: whether the host's name is worth saying.
    """

    def __init__(self, name_hosts: bool) -> None:
        self._name_hosts = name_hosts
        self._held: deque[tuple[float, str]] = deque()

    def show(self, label: str, rank: int | None, text: str, is_error: bool) -> None:
        """Print a line of a rank, or hold one of torchrun's back."""
        if rank is None:
            self._held.append((time.monotonic(), f"[{label if self._name_hosts else 'torchrun'}] {text}"))
        else:
            where = f"{label} rank {rank}" if self._name_hosts else f"rank {rank}"
            print(f"[{where}] {text}", file=sys.stderr if is_error else sys.stdout, flush=True)
        self.release_old()

    def note(self, text: str) -> None:
        """Print a line of the launcher itself."""
        print(text, file=sys.stderr, flush=True)

    def release_old(self) -> None:
        """Print the lines that have been held long enough."""
        self.release(_HOLD_SECONDS)

    def release(self, older_than: float = 0.0) -> None:
        """Print the lines held back, or the older ones of them."""
        while self._held and time.monotonic() - self._held[0][0] >= older_than:
            print(self._held.popleft()[1], file=sys.stderr, flush=True)

    def drop(self) -> None:
        """Forget the lines held back."""
        self._held.clear()
