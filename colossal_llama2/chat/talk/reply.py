"""A reply while it is written: ids in, certain text out, until an end token or a stop string."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from colossal_llama2.chat.streaming import TextStream
from colossal_llama2.chat.talk.stops import StopCutter

Finish = Literal["end_token", "stop_string"]


class ReplyStream:
    """Turns the ids of one reply into text, whole characters at a time, and knows when the reply is over.

    The parts joined are the reply's text: that of all its ids up to the end token, cut at the first stop string.

    Args:
        tokenizer: a fast transformers tokenizer.
        prompt_ids: what the reply follows.
        end_token_ids: tokens that end it; they are no part of the text.
        stop: strings that end it; nor are they.
        lead: blanks that belong to what stands around a reply (see `ChatFormat.lead`) and are left out at its head.

    Attributes:
        ids: tokens of the reply so far, the end token left out.
        finish: what ended it; None while it goes on.
        end_token_ids: tokens that end it.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt_ids: Sequence[int],
        end_token_ids: Collection[int],
        stop: Sequence[str] = (),
        lead: str = "",
    ) -> None:
        self.ids: list[int] = []
        self.finish: Finish | None = None
        self._characters = TextStream(tokenizer, prompt_ids)
        self.end_token_ids = frozenset(end_token_ids)
        self._cutter = StopCutter(stop)
        self._lead = lead
        self._parts: list[str] = []
        self._closed = False

    @property
    def text(self) -> str:
        """What was handed out so far."""
        return "".join(self._parts)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the reply, if one did."""
        return self._cutter.found

    def put(self, index: int) -> str:
        """Take the next id and return the text that is certain now, possibly none; nothing once the reply is over."""
        if self.finish is not None:
            return ""
        if index in self.end_token_ids:
            self.finish = "end_token"
            return ""
        self.ids.append(index)
        return self._hand_out(self._characters.put(index))

    def end(self) -> str:
        """Return what is still held back, once: whether the reply is over or was cut off."""
        if self._closed:
            return ""
        self._closed = True
        last = "" if self.finish == "stop_string" else self._hand_out(self._characters.end())
        rest = self._cutter.end()
        self._parts.append(rest)
        return last + rest

    def _hand_out(self, text: str) -> str:
        while self._lead and text:
            text, self._lead = (text[1:], self._lead[1:]) if text[0] == self._lead[0] else (text, "")
        part = self._cutter.put(text)
        if self._cutter.found is not None:
            self.finish = "stop_string"
        self._parts.append(part)
        return part
