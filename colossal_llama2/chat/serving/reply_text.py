"""From tokens to the text that goes out: whole characters, no stop string, no filtered word, not even in part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from colossal_llama2.chat.serving.word_filter import WordFilter, last_folded
from colossal_llama2.chat.streaming import TextStream


class ReplyText:
    """One text that is being written.

    Args:
        tokenizer: a fast transformers tokenizer.
        prompt_ids: ids before the first written one.
        ends: tokens that end a text.
        stop: strings that end it; they do not belong to it.
        words: what must not be in it; None for no filter.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt_ids: Sequence[int],
        ends: frozenset[int],
        stop: Sequence[str] = (),
        words: WordFilter | None = None,
    ) -> None:
        self._stream = TextStream(tokenizer, prompt_ids)
        self._ends, self._stop, self._words = ends, tuple(stop), words
        self._held = ""
        self._before = ""

    def put(self, token: int) -> tuple[str, str | None]:
        """Take the next token; return the text that is certain now, and why the text ends, if it does."""
        if token in self._ends:
            return self.finish("stop")
        return self._take(self._stream.put(token))

    def finish(self, reason: str) -> tuple[str, str]:
        """Return what was held back, and why the text ends: `reason`, unless what was held back says another."""
        text, found = self._take(self._stream.end())
        if found is not None:
            return text, found
        rest, self._held = self._held, ""
        cut = None if self._words is None else self._words.find(rest, self._before)
        if cut is not None:
            return text + rest[:cut], "content_filter"
        return text + rest, reason

    def _take(self, part: str) -> tuple[str, str | None]:
        self._held += part
        stopped = min((at for at in map(self._held.find, self._stop) if at >= 0), default=None)
        known = self._held if stopped is None else self._held[:stopped]
        if self._words is not None:
            cut = self._words.find(known, self._before, whole=stopped is not None)
            if cut is not None:
                return self._let_go(cut), "content_filter"
        if stopped is not None:
            return self._let_go(stopped), "stop"
        keep = max((_overlap(known, stop) for stop in self._stop), default=0)
        if self._words is not None:
            keep = max(keep, self._words.open_tail(known, self._before))
        return self._let_go(len(known) - keep), None

    def _let_go(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self._before = last_folded(text, self._before)
        return text


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin a stop string."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
