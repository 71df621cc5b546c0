"""The pieces chosen build every word, are allowed, and are as few as an exhaustive search finds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.tokenizer.intermediates import fewest_intermediates

WORDS = st.lists(st.text("abc", min_size=3, max_size=4), min_size=1, max_size=3, unique=True)
PAIRS = st.sets(st.text("abc", min_size=2, max_size=2), max_size=3)


def anything(text: str) -> bool:
    return True


def buildable(parts: Sequence[str], pieces: Collection[str]) -> bool:
    """Say whether some binary tree over the parts has nothing but pieces as inner nodes; the root is given."""
    spans = {(at, at + 1) for at in range(len(parts))}
    for length in range(2, len(parts) + 1):
        for begin in range(len(parts) - length + 1):
            end = begin + length
            is_piece = length == len(parts) or "".join(parts[begin:end]) in pieces
            if is_piece and any((begin, at) in spans and (at, end) in spans for at in range(begin + 1, end)):
                spans.add((begin, end))
    return (0, len(parts)) in spans


def smallest(parts: Mapping[str, Sequence[str]], known: set[str]) -> int:
    """Try every set of texts inside the words, the smaller sets first."""
    texts = {word[begin:end] for word in parts for begin in range(len(word)) for end in range(begin + 2, len(word) + 1)}
    candidates = sorted(texts - known)
    for count in range(len(candidates) + 1):
        for chosen in combinations(candidates, count):
            if all(buildable(part, known | set(chosen)) for part in parts.values()):
                return count
    raise AssertionError("all texts together build every word")


@settings(max_examples=150, deadline=None)
@given(words=WORDS, pairs=PAIRS)
def test_no_smaller_set_builds_the_words(words: list[str], pairs: set[str]) -> None:
    known = {*"abc", *pairs, *words}
    parts = {word: tuple(word) for word in words}
    found = fewest_intermediates(parts, known, anything)
    assert not found.impossible
    assert not known & set(found.pieces)
    assert all(buildable(part, known | set(found.pieces)) for part in parts.values())
    assert len(found.pieces) == smallest(parts, known)


def test_words_share_what_they_can() -> None:
    # the prefixes would be five: ab, abx, cb, cbx, db
    parts = {word: tuple(word) for word in ("abxy", "cbxy", "dxy")}
    found = fewest_intermediates(parts, set(parts), anything)
    assert found.pieces == ("xy", "bxy")


def test_what_is_not_allowed_is_gone_around_or_named() -> None:
    parts = {"2008年": tuple("2008年"), "2008": tuple("2008")}
    found = fewest_intermediates(parts, set(parts), lambda text: not text.isascii())
    assert found.impossible == ("2008",)
    assert sorted(found.pieces) == ["008年", "08年", "8年"]


def test_long_words_grow_from_the_first_part_that_may() -> None:
    word = "12" + "今天气好" * 20 + "3"
    found = fewest_intermediates({word: tuple(word)}, {word}, lambda text: not text.isascii())
    assert not found.impossible
    assert len(found.pieces) == len(word) - 2
    assert buildable(tuple(word), set(found.pieces))
    assert not any(piece.isascii() for piece in found.pieces)
    digits = "1" * 50
    assert fewest_intermediates({digits: tuple(digits)}, {digits}, lambda text: False).impossible == (digits,)


def test_nothing_to_build() -> None:
    assert fewest_intermediates({}, set(), anything).pieces == ()
