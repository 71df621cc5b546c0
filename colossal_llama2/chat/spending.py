"""What a run has sent and paid, and the limits it stays under."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from colossal_llama2.chat.answer_journal import AnswerJournal, Reply
from colossal_llama2.errors import InputError

# What a chat template writes around a message: role names, markers, the opening of the answer.
_TOKENS_AROUND_A_MESSAGE = 64


@dataclass(frozen=True)
class SpendingOptions:
    """What tokens cost, and how much may be spent."""

    price_prompt: float | None = None
    """Price of a million prompt tokens, in any currency."""
    price_completion: float | None = None
    """Price of a million completion tokens, in the same currency."""
    max_cost: float | None = None
    """Stop before more than this is spent on the output, earlier runs counted (default: no limit)."""
    max_requests: int | None = None
    """Stop when this many requests were sent for the output, earlier runs and repeats counted (default: no limit)."""


class Stopped(Exception):
    """A limit is reached: nothing more is asked."""


def check_spending(options: SpendingOptions) -> None:
    """Refuse limits that cannot be kept.

    Raises:
        InputError: a negative price or limit, or a cost without prices.
    """
    numbers = (options.price_prompt, options.price_completion, options.max_cost, options.max_requests)
    if any(number is not None and not 0 <= number < float("inf") for number in numbers):
        raise InputError("a price or limit is negative or no number", remedy="give 0 or more")
    if options.max_cost is not None and (options.price_prompt is None or options.price_completion is None):
        raise InputError("--max_cost without prices", remedy="give --price_prompt and --price_completion")


class Spending:
    """Counts requests, tokens and cost, and admits a request only if its dearest answer stays under the limits.

    What is in flight is reserved at its dearest: a token for every byte of the prompt, and --max_tokens of answer. So
    the cost stays under its limit whatever the endpoint answers, as long as it keeps to --max_tokens.
    """

    def __init__(self, options: SpendingOptions, journal: AnswerJournal) -> None:
        self.stopped_by: str | None = None
        self.prompt_tokens = self.completion_tokens = self.answers = self.without_usage = 0
        self.failures: Counter[str] = Counter(journal.failures)
        self._options = options
        self._reserved = 0.0
        self._in_flight = 0
        self._changed = asyncio.Condition()
        for reply in journal.replies():
            self._count(reply)

    @property
    def cost(self) -> float | None:
        """What the tokens cost so far; None without prices."""
        return self.price(self.prompt_tokens, self.completion_tokens)

    @property
    def requests(self) -> int:
        """Requests that came back, with an answer or without."""
        return self.answers + self.failures.total()

    def price(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return what so many tokens cost; None without prices."""
        if self._options.price_prompt is None and self._options.price_completion is None:
            return None
        prices = (self._options.price_prompt or 0.0, self._options.price_completion or 0.0)
        return (prompt_tokens * prices[0] + completion_tokens * prices[1]) / 1e6

    async def admit(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> float:
        """Wait until the request may be sent, and return what is reserved for it.

        Raises:
            Stopped: it may not.
        """
        size = sum(len(message["content"].encode()) + _TOKENS_AROUND_A_MESSAGE for message in messages)
        dearest = self.price(size, max_tokens) or 0.0
        async with self._changed:
            while True:
                limit = self.stopped_by or self._limit_met(dearest)
                if limit is None:
                    break
                if self.stopped_by is not None or not self._in_flight:
                    self.stopped_by = limit
                    raise Stopped
                await self._changed.wait()
            self._reserved += dearest
            self._in_flight += 1
        return dearest

    async def settle(self, reserved: float, came: Reply | str) -> None:
        """Count what came back for a request that was admitted: an answer, or the name of a failure.

        Raises:
            InputError: the endpoint does not say what it used, and there is a limit on the cost.
        """
        if isinstance(came, Reply):
            self._count(came)
        else:
            self.failures[came] += 1
        await self.release(reserved)
        if self.without_usage and self._options.max_cost is not None:
            what = "the endpoint does not report the tokens it used, so --max_cost cannot be kept"
            raise InputError(what, remedy="use --max_requests")

    async def release(self, reserved: float) -> None:
        """Give back what was reserved."""
        async with self._changed:
            self._reserved -= reserved
            self._in_flight -= 1
            self._changed.notify_all()

    async def stop(self, reason: str) -> None:
        """Admit nothing more."""
        async with self._changed:
            self.stopped_by = self.stopped_by or reason
            self._changed.notify_all()

    def _limit_met(self, dearest: float) -> str | None:
        cost, most = self._options.max_cost, self._options.max_requests
        if most is not None and self.requests + self._in_flight >= most:
            return "max_requests"
        if cost is not None and (self.cost or 0.0) + self._reserved + dearest > cost:
            return "max_cost"
        return None

    def _count(self, reply: Reply) -> None:
        self.answers += 1
        self.prompt_tokens += reply.prompt_tokens or 0
        self.completion_tokens += reply.completion_tokens or 0
        self.without_usage += reply.prompt_tokens is None or reply.completion_tokens is None

    def as_ledger(self) -> dict[str, Any]:
        """Return the counts as the ledger keeps them."""
        return {
            "requests": self.requests,
            "answers": self.answers,
            "failures": dict(sorted(self.failures.items())),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "answers_without_usage": self.without_usage,
            "cost": self.cost,
        }
