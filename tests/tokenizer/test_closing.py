"""Closed merges: every piece kept comes out of its own text, under every policy."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from colossal_llama2.tokenizer.closing import BEATEN, NO_CHARACTER, NO_HALVES, NOT_ALLOWED, close_merges
from colossal_llama2.tokenizer.merges import Merges
from colossal_llama2.tokenizer.piece_model import parse_piece_model


@pytest.fixture(scope="module")
def base(piece_model_bytes: Callable[..., bytes]) -> Merges:
    return Merges(parse_piece_model(piece_model_bytes()))


def anything(text: str) -> bool:
    return True


def test_a_missing_half_is_added_behind(base: Merges) -> None:
    closed = close_merges(base, ["天气很好"], "close", anything)
    assert closed.wanted == ("天气很好",)
    assert len(closed.intermediates) == 2
    assert closed.merge_order == ("天气很好", *closed.intermediates)
    assert closed.left_out == ()


def test_dropping_goes_on_until_nothing_is_stuck(base: Merges) -> None:
    # 今天天气 needs 天气 and 今天; 今天天气很 needs 今天天气, which alone is stuck
    closed = close_merges(base, ["今天", "今天天气", "今天天气很", "天很"], "drop", anything)
    assert closed.wanted == ("今天", "天很")
    assert closed.intermediates == ()
    assert [item.piece for item in closed.left_out] == ["今天天气", "今天天气很"]
    assert all(item.reason.startswith(NO_HALVES) for item in closed.left_out)


def test_a_beaten_piece_is_given_an_earlier_turn(base: Merges) -> None:
    # 今天气很 is 今天 and 气很, but 天气 is joined before either
    pieces = ["天气", "今天", "气很", "今天气很"]
    for policy in ("close", "drop", "error"):
        closed = close_merges(base, pieces, policy, anything)  # type: ignore[arg-type]
        assert closed.wanted == tuple(pieces)
        assert (closed.intermediates, closed.left_out) == ((), ())
        assert set(closed.raised) == {"今天", "气很"}
        assert closed.merge_order.index("天气") > closed.merge_order.index("今天")


def test_an_earlier_turn_that_costs_another_piece_its_own_is_not_given(base: Merges) -> None:
    # whatever comes first of 天气 and 今天/气很, one of the two long pieces loses
    pieces = ["天气", "今天", "气很", "今天气很", "今天气"]
    pieces.remove("今天气")
    pieces += ["小天气很", "小天气"]
    closed = close_merges(base, pieces, "drop", anything)
    assert [item.piece for item in closed.left_out] in (["今天气很"], ["小天气很"])
    assert closed.left_out[0].reason.startswith(BEATEN)
    helped = close_merges(base, pieces, "close", anything)
    assert helped.wanted == tuple(pieces)
    assert len(helped.intermediates) == 1


def test_what_may_not_be_added_is_left_out_with_all_that_needs_it(base: Merges) -> None:
    closed = close_merges(base, ["好天大", "今天"], "close", lambda text: False)
    assert closed.wanted == ("今天",)
    assert [(item.piece, item.reason) for item in closed.left_out] == [("好天大", NOT_ALLOWED)]
    assert closed.intermediates == ()


def test_a_list_of_long_words_alone(base: Merges) -> None:
    words = ["今天天气很好", "我们学习语言", "中国文字世界", "今天天气很大"]
    closed = close_merges(base, words, "close", anything)
    assert closed.wanted == tuple(words)
    assert not closed.left_out
    # four for each of the first three; the last shares all but one of the first's
    assert len(closed.intermediates) == 12
    assert not close_merges(base, words, "drop", anything).wanted


def test_characters_without_a_piece_are_added_or_cost_the_pieces_that_hold_them(base: Merges) -> None:
    assert "龘" not in base
    closed = close_merges(base, ["今龘", "今天龘龘", "靐"], "close", anything)
    assert closed.wanted == ("今龘", "今天龘龘", "靐")
    assert closed.intermediates[0] == "龘"
    assert len(closed.intermediates) == 3
    given = close_merges(base, ["今龘", "龘"], "drop", anything)
    assert (given.wanted, given.intermediates) == (("今龘", "龘"), ())
    for policy, allows in ("drop", anything), ("close", lambda text: text != "龘"):
        closed = close_merges(base, ["今龘", "今大"], policy, allows)  # type: ignore[arg-type]
        assert closed.wanted == ("今大",)
        assert closed.left_out[0].reason == f"holds 龘 (U+9F98), {NO_CHARACTER}"
