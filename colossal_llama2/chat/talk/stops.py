"""Stop strings in a text that comes in parts."""

from __future__ import annotations

from collections.abc import Sequence


class StopCutter:
    """Lets a text through up to the first stop string, however the text is cut into parts.

    The first is the one that is whole first, and of several that are whole at the same character the longest. What may
    be the beginning of one is held back until that is decided. Nothing of a stop string comes out, nor what follows.

    Args:
        stops: the strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string stands everywhere"
        self.found: str | None = None
        """The stop string that was met."""
        self._stops = tuple(stops)
        self._held = ""

    def put(self, part: str) -> str:
        """Take the next part and return the text that is certain now, possibly none."""
        if self.found is not None:
            return ""
        text = self._held + part
        places = [(text.index(stop), stop) for stop in self._stops if stop in text]
        if places:
            begin, self.found = min(places, key=lambda place: (place[0] + len(place[1]), place[0]))
            self._held = ""
            return text[:begin]
        kept = self._size_of_beginning(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def end(self) -> str:
        """Return what is still held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _size_of_beginning(self, text: str) -> int:
        """Return how many characters at the end of `text` a stop string may begin with, at most."""
        longest = min(max(map(len, self._stops), default=1) - 1, len(text))
        return next(
            (size for size in range(longest, 0, -1) if any(stop.startswith(text[-size:]) for stop in self._stops)), 0
        )
