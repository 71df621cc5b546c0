"""Asking so that nothing is paid twice: the journal first, then the endpoint with patience, then a judgement."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from colossal_llama2 import cli
from colossal_llama2.chat.answer_journal import AnswerJournal, GaveUp, Reply, digest_of
from colossal_llama2.chat.endpoint import EndpointOptions, TroubleError
from colossal_llama2.chat.spending import Spending, Stopped
from colossal_llama2.errors import InputError

Read = TypeVar("Read")
Message = dict[str, str]
_LONGEST_WAIT = 60.0
_THINKING = ("<think>", "</think>")


@dataclass(frozen=True)
class AskingOptions:
    """How patient a run is."""

    concurrency: int = 8
    """Most requests under way at a time; the output does not depend on it."""
    max_retries: int = 6
    """Times that a request is sent again after 429, a server's error, a timeout or a lost connection."""
    first_wait: float = 1.0
    """Seconds before the first of these; each further one waits twice as long, up to 60, or as Retry-After says."""
    longest_retry_after: float = 600.0
    """Longest Retry-After that is waited for, in seconds; beyond that the request fails at once."""
    malformed_retries: int = 2
    """Times that a request is asked again, with another seed, when its answer is of no use."""
    max_failures: int = 5
    """Stop when this many requests in a row got no answer after all their tries."""


class Sender(Protocol):
    """What answers a request: an `Endpoint`, or a test's stand-in."""

    async def send(self, body: Mapping[str, Any]) -> Reply:
        """Ask once."""
        ...


class MalformedError(Exception):
    """An answer is of no use.

    Args:
        reason: its name in the ledger.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class FailedError(MalformedError):
    """No answer came."""


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        name: what the journal calls it; the same in every run.
        messages: the conversation so far.
        model: the model to ask; None asks the one of the options.
        temperature: likewise.
        others_follow: whether other questions are made from the answer. If none came, and others were answered after
            that, the journal keeps it, and a later run does not ask again: what was paid for would not fit any more.
    """

    name: str
    messages: Sequence[Message]
    model: str | None = None
    temperature: float | None = None
    others_follow: bool = False


def check_asking(options: AskingOptions) -> None:
    """Refuse a patience that cannot be.

    Raises:
        InputError: a number is out of range.
    """
    if min(options.max_retries, options.malformed_retries) < 0 or min(options.concurrency, options.max_failures) < 1:
        what = "--concurrency and --max_failures begin at 1, --max_retries and --malformed_retries at 0"
        raise InputError(what, remedy="give more")
    if not (0 <= options.first_wait <= _LONGEST_WAIT and options.longest_retry_after >= 0):
        raise InputError(f"--first_wait is not from 0 to {_LONGEST_WAIT:g} seconds, or --longest_retry_after negative")


class Asker:
    """Asks questions until an answer is of use.

    Attributes:
        malformed: answers that were of no use, by reason, those that were asked again among them.
        usable: answers that were of use.
        thoughts_removed: answers that began with a ``<think>`` part, which was taken off.
    """

    def __init__(
        self,
        sender: Sender,
        journal: AnswerJournal,
        spending: Spending,
        endpoint: EndpointOptions,
        options: AskingOptions,
        seed: int,
    ) -> None:
        self.malformed: Counter[str] = Counter()
        self.usable = self.thoughts_removed = 0
        self._sender, self._journal, self._spending = sender, journal, spending
        self._endpoint, self._options, self._seed = endpoint, options, seed
        self._given_up: list[tuple[str, str, GaveUp]] = []
        self._failed_in_a_row = 0
        self._quiet_until = 0.0
        self._warned: set[str] = set()

    async def ask(self, question: Question, read: Callable[[str], Read]) -> Read:
        """Ask, and return what `read` makes of the answer; ask again where it raises `MalformedError`.

        Raises:
            MalformedError: no answer was of use; the reason is the last one's.
            FailedError: no answer came.
            Stopped: a limit is reached.
            InputError: the endpoint refuses the request.
        """
        for attempt in range(self._options.malformed_retries + 1):
            reply = await self._reply(question, f"{question.name}#{attempt}")
            try:
                result = read(self._content(reply))
            except MalformedError as error:
                self.malformed[error.reason] += 1
                last = error
            else:
                self.usable += 1
                return result
        raise last

    def body(self, question: Question, name: str) -> dict[str, Any]:
        """Return what is posted for a question under the name of one attempt."""
        options = self._endpoint
        temperature = options.temperature if question.temperature is None else question.temperature
        seed = int.from_bytes(hashlib.sha256(f"{self._seed}/{name}".encode()).digest()[:4], "big") >> 1
        fields = {
            "model": question.model or options.model,
            "messages": list(question.messages),
            "temperature": temperature,
            "top_p": options.top_p,
            options.max_tokens_name: options.max_tokens,
            "seed": seed if options.send_seed else None,
        }
        return {name: value for name, value in fields.items() if value is not None}

    async def _reply(self, question: Question, name: str) -> Reply:
        body = self.body(question, name)
        digest = digest_of(body)
        found = self._journal.find(name, digest)
        if isinstance(found, GaveUp):
            raise FailedError(found.reason)
        if found is not None:
            return found
        for attempt in range(self._options.max_retries + 1):
            try:
                reply = await self._send(name, digest, body)
            except TroubleError as trouble:
                if attempt == self._options.max_retries or (trouble.retry_after or 0) > self._longest():
                    raise await self._give_up(question, name, digest, trouble.reason) from None
                await self._wait(attempt, trouble)
            else:
                self._failed_in_a_row = 0
                return reply
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, name: str, digest: str, body: Mapping[str, Any]) -> Reply:
        """Send once, and have the journal and the account know what came of it."""
        while (quiet := self._quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(quiet)
        reserved = await self._spending.admit(body["messages"], self._endpoint.max_tokens)
        try:
            reply = await self._sender.send(body)
        except TroubleError as trouble:
            self._journal.add_failure(name, trouble.reason)
            await self._spending.settle(reserved, trouble.reason)
            raise
        except BaseException:
            await self._spending.release(reserved)
            raise
        for given_up in self._given_up:  # the endpoint lives: it is those requests that get no answer
            self._journal.add(*given_up)
        self._given_up.clear()
        self._journal.add(name, digest, reply)
        await self._spending.settle(reserved, reply)
        return reply

    async def _wait(self, attempt: int, trouble: TroubleError) -> None:
        """Wait as the endpoint asks, all requests with this one, or else longer each time, no two alike."""
        if trouble.reason not in self._warned:
            self._warned.add(trouble.reason)
            cli.warn(f"the endpoint answers with trouble ({trouble.reason}); trying again (said once)")
        if trouble.retry_after:
            self._quiet_until = max(self._quiet_until, time.monotonic() + trouble.retry_after)
        longest = min(self._options.first_wait * 2.0**attempt, _LONGEST_WAIT)
        await asyncio.sleep((trouble.retry_after or 0.0) + longest * random.uniform(0.5, 1.0))

    async def _give_up(self, question: Question, name: str, digest: str, reason: str) -> FailedError:
        if question.others_follow:
            self._given_up.append((name, digest, GaveUp(reason)))
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self._options.max_failures:
            await self._spending.stop("max_failures")
        return FailedError(reason)

    def _longest(self) -> float:
        return self._options.longest_retry_after

    def _content(self, reply: Reply) -> str:
        """Return what was said, or complain about an answer that is none.

        Raises:
            MalformedError: a refusal, cut off by its length, no text, or nothing in it.
        """
        if reply.refused:
            raise MalformedError("refusal")
        if reply.finish_reason == "length":
            raise MalformedError("truncated")
        if reply.finish_reason == "not_text":
            raise MalformedError("not_text")
        content = reply.content.strip()
        if content.startswith(_THINKING[0]) and _THINKING[1] in content:
            self.thoughts_removed += 1
            content = content.partition(_THINKING[1])[2].strip()
        if not content:
            raise MalformedError("empty")
        return content


@dataclass(frozen=True)
class Lost:
    """What became of an item that was not made.

    Attributes:
        how: malformed and failed were asked for in vain, not_reached was not, since a limit came before.
        reason: why, as the ledger names it.
    """

    how: Literal["malformed", "failed", "not_reached"]
    reason: str


async def gather(
    jobs: Sequence[Callable[[], Awaitable[Read]]], concurrency: int, done: Callable[[], None]
) -> list[Read | Lost]:
    """Run jobs, the first ones first, and return what each made, in their order.

    Args:
        jobs: each asks one question at a time.
        concurrency: how many run at a time.
        done: called behind each.

    Raises:
        InputError: one of them raised it; the others are cancelled.
    """
    results: list[Read | Lost | None] = [None] * len(jobs)
    rest = iter(enumerate(jobs))

    async def work() -> None:
        for number, job in rest:
            results[number] = await _outcome(job)
            done()

    tasks = [asyncio.create_task(work()) for _ in range(min(concurrency, len(jobs)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [result for result in results if result is not None]


async def _outcome(job: Callable[[], Awaitable[Read]]) -> Read | Lost:
    try:
        return await job()
    except FailedError as error:
        return Lost("failed", error.reason)
    except MalformedError as error:
        return Lost("malformed", error.reason)
    except Stopped:
        return Lost("not_reached", "")
