"""Selecting: shares to the document, weights read as written, nonsense refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.dataset.selecting import ShareTaker, copies_of, parse_share, parse_weights
from colossal_llama2.errors import InputError


@given(
    categories=st.lists(st.integers(0, 2), max_size=120),
    shares=st.lists(st.integers(0, 100), min_size=3, max_size=3),
    cuts=st.lists(st.integers(0, 120), max_size=3),
)
def test_a_share_is_taken_to_the_document_whatever_the_blocks(
    categories: list[int], shares: list[int], cuts: list[int]
) -> None:
    taker = ShareTaker(np.array(shares) / 100, 5)
    taken = np.concatenate([taker.take(block) for block in np.split(np.array(categories, dtype=int), sorted(cuts))])
    for category in range(3):
        own = np.array(categories, dtype=int) == category
        assert taken[own].sum() == own.sum() * shares[category] // 100


def test_copies_are_the_whole_part_and_a_share_of_the_rest() -> None:
    weights = np.array([0.0, 2.5])
    copies = copies_of(np.array([0] * 4 + [1] * 4), weights, ShareTaker(weights % 1, 1))
    assert copies[:4].tolist() == [0] * 4
    assert sorted(copies[4:].tolist()) == [2, 2, 3, 3]


def test_weights_and_shares_are_read() -> None:
    assert parse_weights("a=2, b=0.5", ["a", "b", "c"]) == {"a": 2.0, "b": 0.5}
    assert parse_weights("x=y=3", ["x=y"]) == {"x=y": 3.0}
    assert parse_weights("", ["a"]) == {}
    assert (parse_share("0.1%"), parse_share("0.25"), parse_share("0")) == (0.001, 0.25, 0.0)


@pytest.mark.parametrize("text", ["a", "a=", "=2", "a=-1", "a=nan", "a=inf", "a=1,a=2", "d=1", "a=two"])
def test_other_weights_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--category_weights"):
        parse_weights(text, ["a", "b"])


@pytest.mark.parametrize("text", ["", "%", "-1%", "60%", "2", "nan", "much"])
def test_other_shares_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--holdout"):
        parse_share(text)
