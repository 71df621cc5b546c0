"""From tokens to the text that goes out: no filtered word, not even in part, and why the text ended."""

from __future__ import annotations

from colossal_llama2.chat.serving.word_filter import WordFilter, last_folded
from colossal_llama2.chat.talk.reply import ReplyStream


class ReplyText:
    """One text that is being written.

    Args:
        stream: makes text of tokens, up to an end token or a stop string.
        words: what must not be in it; None for no filter.
    """

    def __init__(self, stream: ReplyStream, words: WordFilter | None = None) -> None:
        self._stream, self._words = stream, words
        self._held = ""
        self._before = ""

    def put(self, token: int) -> tuple[str, str | None]:
        """Take the next token; return the text that is certain now, and why the text ends, if it does."""
        text = self._stream.put(token)
        if self._stream.finish is not None:
            return self._let_through(text + self._stream.end(), "stop")
        return self._let_through(text, None)

    def finish(self, reason: str) -> tuple[str, str]:
        """Return what was held back, and why the text ends: `reason`, unless what was held back says another."""
        text, found = self._let_through(self._stream.end(), reason)
        return text, found or reason

    def _let_through(self, part: str, ending: str | None) -> tuple[str, str | None]:
        if self._words is None:
            return part, ending
        self._held += part
        found = self._words.find(self._held, self._before, whole=ending is not None)
        if found is not None:
            return self._held[:found], "content_filter"
        keep = self._words.open_tail(self._held, self._before) if ending is None else 0
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self._before = last_folded(certain, self._before)
        return certain, ending
