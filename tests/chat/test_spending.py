"""Limits hold whatever comes back, and everything that came back is counted."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from colossal_llama2.chat.answer_journal import Reply, open_journal
from colossal_llama2.chat.spending import Spending, SpendingOptions, Stopped, check_spending
from colossal_llama2.errors import InputError

MESSAGES = [{"role": "user", "content": "x" * 100}]


def spending(tmp_path: Path, options: SpendingOptions) -> Spending:
    with open_journal(tmp_path / "a.journal", {}) as journal:
        return Spending(options, journal)


@pytest.mark.parametrize("seed", range(5))
def test_the_cost_is_never_passed(tmp_path: Path, seed: int) -> None:
    options = SpendingOptions(price_prompt=1.0, price_completion=4.0, max_cost=0.01)
    account, draw, sent = spending(tmp_path, options), random.Random(seed), 0

    async def worker() -> None:
        nonlocal sent
        while True:
            reserved = await account.admit(MESSAGES, max_tokens=200)
            sent += 1
            await asyncio.sleep(draw.random() / 1000)
            await account.settle(reserved, Reply("", prompt_tokens=100, completion_tokens=draw.randrange(201)))

    async def run() -> None:
        results = await asyncio.gather(*(worker() for _ in range(4)), return_exceptions=True)
        assert all(isinstance(result, Stopped) for result in results)

    asyncio.run(run())
    assert account.cost is not None
    assert account.cost <= 0.01
    assert account.cost > 0.01 - (164 + 4 * 200) / 1e6, "the last request that fits was sent"
    assert account.stopped_by == "max_cost"
    assert sent == account.requests > 10


def test_failures_count_as_requests_and_cost_nothing(tmp_path: Path) -> None:
    account = spending(tmp_path, SpendingOptions(price_prompt=1.0, max_requests=3))

    async def run() -> None:
        for came in ("status_500", Reply("", prompt_tokens=7, completion_tokens=5), "timeout"):
            await account.settle(await account.admit(MESSAGES, 10), came)
        with pytest.raises(Stopped):
            await account.admit(MESSAGES, 10)

    asyncio.run(run())
    assert account.stopped_by == "max_requests"
    assert account.as_ledger() == {
        "requests": 3,
        "answers": 1,
        "failures": {"status_500": 1, "timeout": 1},
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "answers_without_usage": 0,
        "cost": 7e-6,
    }


def test_earlier_runs_count(tmp_path: Path) -> None:
    with open_journal(tmp_path / "a.journal", {}) as journal:
        journal.add("one#0", "d", Reply("", prompt_tokens=10, completion_tokens=20))
        journal.add_failure("two#0", "status_429")
    with open_journal(tmp_path / "a.journal", {}) as journal:
        account = Spending(SpendingOptions(price_prompt=2.0, price_completion=3.0), journal)
    assert (account.requests, account.answers) == (2, 1)
    assert account.cost == pytest.approx(80e-6)


def test_a_request_that_was_not_sent_gives_its_place_back(tmp_path: Path) -> None:
    account = spending(tmp_path, SpendingOptions(max_requests=1))

    async def run() -> None:
        await account.release(await account.admit(MESSAGES, 10))
        await account.admit(MESSAGES, 10)

    asyncio.run(run())
    assert account.stopped_by is None


def test_a_limit_on_the_cost_needs_the_tokens(tmp_path: Path) -> None:
    account = spending(tmp_path, SpendingOptions(price_prompt=1.0, price_completion=1.0, max_cost=1.0))

    async def run() -> None:
        with pytest.raises(InputError, match="does not report"):
            await account.settle(await account.admit(MESSAGES, 10), Reply("text"))

    asyncio.run(run())
    assert account.without_usage == 1


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (SpendingOptions(max_cost=1.0), "without prices"),
        (SpendingOptions(max_cost=1.0, price_prompt=1.0), "without prices"),
        (SpendingOptions(price_prompt=-1.0), "negative"),
        (SpendingOptions(max_requests=-1), "negative"),
        (SpendingOptions(price_prompt=float("nan")), "no number"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(options: SpendingOptions, what: str) -> None:
    with pytest.raises(InputError, match=what):
        check_spending(options)
    check_spending(SpendingOptions(price_prompt=1.0, price_completion=2.0, max_cost=0.0))
