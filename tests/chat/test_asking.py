"""Nothing is asked twice, patience has an end, and an answer of no use is asked for again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.chat.answer_journal import Reply, open_journal
from colossal_llama2.chat.asking import (
    Asker,
    AskingOptions,
    FailedError,
    Lost,
    MalformedError,
    Question,
    check_asking,
    gather,
)
from colossal_llama2.chat.endpoint import EndpointOptions, TroubleError
from colossal_llama2.chat.spending import Spending, SpendingOptions, Stopped
from colossal_llama2.errors import InputError

QUESTION = Question("one", [{"role": "user", "content": "hello"}])
QUICK = AskingOptions(first_wait=0.0, max_retries=2, malformed_retries=2)


class Scripted:
    """Answers what it was told, one thing after the other; the last one for ever."""

    def __init__(self, *script: Reply | Exception) -> None:
        self.script, self.seen = list(script), list[Mapping[str, Any]]()

    async def send(self, body: Mapping[str, Any]) -> Reply:
        self.seen.append(body)
        now = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(now, Exception):
            raise now
        return now


def run(
    folder: Path,
    sender: Scripted,
    work: Callable[[Asker, Spending], Any],
    options: AskingOptions = QUICK,
) -> Any:
    async def inside() -> Any:
        with open_journal(folder / "a.journal", {}) as journal:
            account = Spending(SpendingOptions(), journal)
            return await work(Asker(sender, journal, account, EndpointOptions("http://x/v1", "m"), options, 1), account)

    return asyncio.run(inside())


def only_digits(text: str) -> int:
    if not text.isdigit():
        raise MalformedError("no_digits")
    return int(text)


def ask(asker: Asker, account: Spending) -> Any:
    return asker.ask(QUESTION, only_digits)


def test_an_answer_is_paid_once(tmp_path: Path) -> None:
    sender = Scripted(Reply("12"))
    assert [run(tmp_path, sender, ask) for _ in range(3)] == [12, 12, 12]
    assert len(sender.seen) == 1


def test_trouble_is_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sender = Scripted(TroubleError("status_500"), TroubleError("status_500"), Reply("12"))

    async def work(asker: Asker, account: Spending) -> dict[str, int]:
        assert await asker.ask(QUESTION, only_digits) == 12
        return dict(account.failures)

    assert run(tmp_path, sender, work) == {"status_500": 2}
    assert sender.seen[0] == sender.seen[1] == sender.seen[2], "the same request each time"
    assert capsys.readouterr().err.count("status_500") == 1


def test_patience_ends_and_a_later_run_asks_again(tmp_path: Path) -> None:
    sender = Scripted(TroubleError("timeout"), TroubleError("timeout"), TroubleError("status_502"), Reply("12"))
    with pytest.raises(FailedError, match="status_502"):
        run(tmp_path, sender, ask)
    assert len(sender.seen) == 3
    assert run(tmp_path, sender, ask) == 12


def test_what_others_followed_is_not_asked_again(tmp_path: Path) -> None:
    question = Question("one", QUESTION.messages, others_follow=True)

    async def work(asker: Asker, account: Spending) -> None:
        with pytest.raises(FailedError, match="timeout"):
            await asker.ask(question, only_digits)
        await asker.ask(Question("other", QUESTION.messages), only_digits)

    sender = Scripted(TroubleError("timeout"), TroubleError("timeout"), TroubleError("timeout"), Reply("12"))
    for _ in range(2):
        run(tmp_path, sender, work)
    assert len(sender.seen) == 4


def test_what_nothing_followed_is_asked_again(tmp_path: Path) -> None:
    question = Question("one", QUESTION.messages, others_follow=True)
    sender = Scripted(TroubleError("timeout"), TroubleError("timeout"), TroubleError("timeout"), Reply("12"))
    with pytest.raises(FailedError, match="timeout"):
        run(tmp_path, sender, lambda asker, _: asker.ask(question, only_digits))
    assert run(tmp_path, sender, lambda asker, _: asker.ask(question, only_digits)) == 12


def test_retry_after_is_waited_for_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waits = [100.0], list[float]()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr("colossal_llama2.chat.asking.asyncio.sleep", sleep)
    monkeypatch.setattr("colossal_llama2.chat.asking.time.monotonic", lambda: clock[0])
    sender = Scripted(TroubleError("status_429", 30.0), Reply("12"))

    async def work(asker: Asker, account: Spending) -> float:
        await asker.ask(QUESTION, only_digits)
        return asker._quiet_until

    assert run(tmp_path, sender, work) == 130.0
    assert clock[0] >= 130.0
    assert waits


def test_waits_double_and_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = list[float]()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("colossal_llama2.chat.asking.asyncio.sleep", sleep)
    with pytest.raises(FailedError):
        run(tmp_path, Scripted(TroubleError("timeout")), ask, AskingOptions(first_wait=1.0, max_retries=8))
    longest = [1, 2, 4, 8, 16, 32, 60, 60]
    assert len(waits) == len(longest)
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=True))
    assert len({wait / most for wait, most in zip(waits, longest, strict=True)}) > 1


def test_too_long_a_retry_after_is_not_waited_for(tmp_path: Path) -> None:
    sender = Scripted(TroubleError("status_429", 3600.0))
    with pytest.raises(FailedError, match="status_429"):
        run(tmp_path, sender, ask)
    assert len(sender.seen) == 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply("words"), "no_digits"),
        (Reply("12", "length"), "truncated"),
        (Reply("12", refused=True), "refusal"),
        (Reply("", "not_text"), "not_text"),
        (Reply(" \n"), "empty"),
        (Reply("<think>12</think> "), "empty"),
        (Reply("<think>12"), "no_digits"),
    ],
)
def test_an_answer_of_no_use_is_asked_for_again_with_another_seed(tmp_path: Path, reply: Reply, reason: str) -> None:
    sender = Scripted(reply, Reply("<think>which?\n</think>\n7"))

    async def work(asker: Asker, account: Spending) -> None:
        assert await asker.ask(QUESTION, only_digits) == 7
        assert asker.malformed == {reason: 1}
        assert asker.usable == 1
        assert asker.thoughts_removed in (1, 2)

    run(tmp_path, sender, work)
    assert sender.seen[0]["seed"] != sender.seen[1]["seed"]
    with pytest.raises(MalformedError, match=reason):
        run(tmp_path / "other", Scripted(reply), ask)


def test_what_is_posted(tmp_path: Path) -> None:
    async def work(asker: Asker, account: Spending) -> tuple[dict[str, Any], dict[str, Any]]:
        judge = Question("one", QUESTION.messages, model="judge", temperature=0.0)
        return asker.body(QUESTION, "one#0"), asker.body(judge, "one#0")

    plain, judge = run(tmp_path, Scripted(Reply("")), work)
    assert 0 <= plain.pop("seed") < 2**31
    assert plain == {"model": "m", "messages": list(QUESTION.messages), "temperature": 0.8, "max_tokens": 1024}
    assert (judge["model"], judge["temperature"]) == ("judge", 0.0)


def test_many_failures_in_a_row_end_the_run(tmp_path: Path) -> None:
    options = AskingOptions(first_wait=0.0, max_retries=0, max_failures=3)
    questions = [Question(str(number), QUESTION.messages) for number in range(10)]

    async def work(asker: Asker, account: Spending) -> tuple[list[Any], str | None]:
        jobs = [partial(asker.ask, question, only_digits) for question in questions]
        return await gather(jobs, 1, lambda: None), account.stopped_by

    sender = Scripted(TroubleError("timeout"), TroubleError("timeout"), Reply("1"), TroubleError("timeout"))
    results, why = run(tmp_path, sender, work, options)
    failed, rest = Lost("failed", "timeout"), Lost("not_reached", "")
    assert results == [failed, failed, 1, failed, failed, failed, rest, rest, rest, rest]
    assert why == "max_failures"


def test_jobs_keep_their_order_and_their_number(tmp_path: Path) -> None:
    now, most = 0, 0

    async def job(number: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep((7 - number % 7) / 1000)
        now -= 1
        if number == 5:
            raise Stopped
        return number

    done: list[None] = []
    results = asyncio.run(gather([partial(job, number) for number in range(20)], 3, lambda: done.append(None)))
    assert results == [Lost("not_reached", "") if number == 5 else number for number in range(20)]
    assert (most, len(done)) == (3, 20)
    assert asyncio.run(gather([], 3, lambda: None)) == []


def test_a_mistake_ends_all_jobs() -> None:
    ended: list[int] = []

    async def job(number: int) -> None:
        if number == 1:
            raise InputError("no such model")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(number)

    with pytest.raises(InputError, match="no such model"):
        asyncio.run(gather([partial(job, number) for number in range(3)], 3, lambda: None))
    assert sorted(ended) == [0, 2]


@pytest.mark.parametrize(
    "options",
    [
        AskingOptions(concurrency=0),
        AskingOptions(max_retries=-1),
        AskingOptions(first_wait=-1.0),
        AskingOptions(max_failures=0),
    ],
)
def test_a_patience_that_cannot_be_is_refused(options: AskingOptions) -> None:
    with pytest.raises(InputError):
        check_asking(options)
    check_asking(AskingOptions())
