"""What a request hands to the worker, and what comes back while it runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from colossal_llama2.chat.serving.api_errors import ApiError
from colossal_llama2.chat.serving.batching import Writing
from colossal_llama2.chat.serving.reply_text import ReplyText
from colossal_llama2.chat.serving.sampling import Drawer, SamplingOptions


@dataclass(frozen=True)
class Part:
    """A piece of one text.

    Attributes:
        index: which of the request's texts.
        text: what is new; empty where a token added nothing that is certain.
        num_tokens: tokens written so far.
        finish_reason: why the text ended, if it did.
    """

    index: int
    text: str
    num_tokens: int
    finish_reason: str | None = None


@dataclass(frozen=True)
class Prompt:
    """One prompt of a request, and how the texts that go on from it are written.

    Attributes:
        ids: its tokens.
        options: one for each text.
        max_tokens: most tokens of each.
        stop: strings that end one.
        blocked: whether it holds a filtered word: nothing is written then.
        lead: blanks at the head of a reply that are no part of it.
        end_token_ids: tokens that end a text.
        num_dropped: messages that were left out of a conversation.
    """

    ids: Sequence[int]
    options: Sequence[SamplingOptions]
    max_tokens: int
    stop: Sequence[str] = ()
    blocked: bool = False
    lead: str = ""
    end_token_ids: frozenset[int] = frozenset()
    num_dropped: int = 0


class Job:
    """One text on its way."""

    def __init__(self, index: int, ticket: Ticket, prompt: Prompt, options: SamplingOptions, text: ReplyText) -> None:
        self.index, self.ticket, self.max_tokens, self.text = index, ticket, prompt.max_tokens, text
        self.writing = Writing(prompt.ids, Drawer(options))
        self.first_token: float | None = None


class Ticket:
    """A request at the worker: its texts' parts in order, until all have ended or one has failed.

    Args:
        seconds: from now until the request is ended.
    """

    def __init__(self, seconds: float) -> None:
        self.began = time.monotonic()
        self.deadline = self.began + seconds
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Part | ApiError] = asyncio.Queue()

    def block(self, index: int) -> None:
        """End a text before it begins, because its prompt holds a filtered word."""
        self._queue.put_nowait(Part(index, "", 0, "content_filter"))

    def post(self, items: Sequence[Part | ApiError]) -> None:
        """Hand parts to the waiting request, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._put, list(items))

    async def parts(self, num_texts: int) -> AsyncIterator[Part]:
        """Yield what comes, until so many texts have ended.

        Raises:
            ApiError: it fails.
        """
        while num_texts:
            item = await self._queue.get()
            if isinstance(item, ApiError):
                raise item
            yield item
            num_texts -= item.finish_reason is not None

    def _put(self, items: Sequence[Part | ApiError]) -> None:
        for item in items:
            self._queue.put_nowait(item)
