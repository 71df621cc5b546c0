"""Every item is counted once, and a ledger that does not balance is an error."""

from __future__ import annotations

import pytest

from colossal_llama2.chat.asking import Lost
from colossal_llama2.chat.making_ledger import Tally, about_tokens


def test_a_tally_balances() -> None:
    tally = Tally()
    assert tally.take("new")
    assert not tally.take("exact")
    assert not tally.take("near")
    tally.lose(Lost("malformed", "no_json"), 3)
    tally.lose(Lost("failed", "timeout"))
    tally.lose(Lost("not_reached", ""), 5)
    tally.repeat("all_answers_alike")
    ledger = tally.as_ledger()
    assert ledger["asked"] == 8
    assert (ledger["kept"], ledger["not_reached"]) == (1, 5)
    assert ledger["duplicates"] == {"all_answers_alike": 1, "exact": 1, "near": 1}
    assert (ledger["malformed"], ledger["failed"]) == ({"no_json": 3}, {"timeout": 1})


def test_one_that_does_not_is_said() -> None:
    with pytest.raises(RuntimeError, match="does not balance"):
        Tally(asked=2, kept=1).as_ledger()


def test_tokens_are_guessed_by_script() -> None:
    assert about_tokens("a" * 400) == 101
    assert about_tokens("中" * 400) == 401
