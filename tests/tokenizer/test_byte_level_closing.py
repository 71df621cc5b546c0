"""Closing explicit merges: every wanted token is reached, the base untouched, and little is added for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.tokenizer.byte_level_closing import (
    NO_PAIR,
    NO_TREE,
    NOT_ALLOWED,
    ClosedMerges,
    Rule,
    close_merges,
    merge_parts,
)

Merge = tuple[str, str]


def _bpe(text: str, merges: Sequence[Merge]) -> list[str]:
    """Merge as the definition says: again and again, all there is of the first merge that applies, from the left."""
    parts = list(text)
    while True:
        merge = next((merge for merge in merges if merge in pairwise(parts)), None)
        if merge is None:
            return parts
        at = list(pairwise(parts)).index(merge)
        parts[at : at + 2] = ["".join(merge)]


def _close(wanted: Sequence[str], merges: Sequence[Merge] = (), rule: Rule | None = None) -> ClosedMerges:
    base = {*"abcdefgh", *(left + right for left, right in merges)}
    return close_merges({token: _bpe(token, merges) for token in wanted}, base, rule or Rule())


@st.composite
def _cases(draw: st.DrawFn) -> tuple[list[Merge], list[str]]:
    known = list("abcd")
    merges: list[Merge] = []
    for _ in range(draw(st.integers(0, 6))):
        pair = draw(st.sampled_from(known)), draw(st.sampled_from(known))
        if "".join(pair) not in known and len("".join(pair)) < 5:
            merges.append(pair)
            known.append("".join(pair))
    words = st.text("abcd", min_size=2, max_size=7).filter(lambda word: word not in known)
    return merges, draw(st.lists(words, min_size=1, max_size=8, unique=True))


@given(_cases(), st.lists(st.text("abcd", max_size=12), max_size=5))
@settings(max_examples=150, deadline=None)
def test_every_token_is_reached_and_the_base_is_heard_first(
    case: tuple[list[Merge], list[str]], texts: list[str]
) -> None:
    merges, wanted = case
    closed = _close(wanted, merges)
    together = [*merges, *closed.merges]
    base = {*"abcdefgh", *(left + right for left, right in merges)}
    assert set(closed.reached) | set(closed.left_out) == set(wanted)
    assert set(closed.left_out.values()) <= {NO_TREE}
    assert len(set(closed.tokens)) == len(closed.tokens)
    assert base.isdisjoint(closed.tokens)
    assert {left + right for left, right in closed.merges} == set(closed.tokens)
    for token in closed.reached:
        assert _bpe(token, together) == [token]
    ranks = {merge: rank for rank, merge in enumerate(closed.merges)}
    for text in [*texts, *wanted, *base]:
        assert _bpe(text, together) == merge_parts(_bpe(text, merges), ranks)
        assert len(_bpe(text, together)) <= len(_bpe(text, merges))
    assert all(_bpe(token, together) == [token] for token in base if _bpe(token, merges) == [token])


@given(_cases())
@settings(deadline=None)
def test_without_adding_only_the_wanted_are_made(case: tuple[list[Merge], list[str]]) -> None:
    merges, wanted = case
    closed = _close(wanted, merges, Rule(may_add=False))
    assert closed.between == ()
    assert set(closed.left_out.values()) <= {NO_PAIR, NO_TREE}
    for token in closed.reached:
        assert _bpe(token, [*merges, *closed.merges]) == [token]


@given(_cases(), st.sets(st.sampled_from(["ab", "bc", "cd", "abc", "bcd", "aa", "dc"])))
@settings(deadline=None)
def test_what_is_not_allowed_is_not_added(case: tuple[list[Merge], list[str]], banned: set[str]) -> None:
    merges, wanted = case
    closed = _close(wanted, merges, Rule(allows=lambda text: text not in banned))
    assert banned.isdisjoint(closed.between)
    assert set(closed.left_out.values()) <= {NOT_ALLOWED, NO_TREE}
    for token in closed.reached:
        assert _bpe(token, [*merges, *closed.merges]) == [token]


def _fewest(wanted: Sequence[str]) -> int:
    """Try all sets of tokens in between, the smallest first; the base is single letters."""
    spans = {word[i:j] for word in wanted for i in range(len(word)) for j in range(i + 2, len(word) + 1)}
    candidates = sorted(spans - set(wanted))
    for count in range(len(candidates) + 1):
        for chosen in combinations(candidates, count):
            if all(_buildable(word, {*wanted, *chosen}) for word in wanted):
                return count
    raise AssertionError("all spans together are enough")


def _buildable(word: str, tokens: set[str]) -> bool:
    if len(word) == 1:
        return True
    return word in tokens and any(
        _buildable(word[:cut], tokens) and _buildable(word[cut:], tokens) for cut in range(1, len(word))
    )


@given(st.text("abc", min_size=2, max_size=6))
@settings(deadline=None)
def test_one_token_gets_no_more_in_between_than_it_needs(word: str) -> None:
    distinct = _close([word])
    # A span that stands twice in one word is counted twice when the tree is chosen: one more at most.
    assert len(distinct.between) <= _fewest([word]) + 1
    if len(set(word)) == len(word):
        assert len(distinct.between) == _fewest([word])


@pytest.mark.parametrize(
    ("wanted", "between"),
    [
        (["ab", "abc", "abcd"], set()),
        (["abcd"], {"ab", "abc", "cd", "bc", "bcd"}),
        (["cab", "dab", "eab"], {"ab"}),  # one ending serves all three
        (["abc", "abd", "abe"], {"ab"}),
        (["abcab"], {"ab", "abc", "ca", "bca", "cab", "bc", "bcab"}),
    ],
)
def test_tokens_in_between_are_shared(wanted: list[str], between: set[str]) -> None:
    closed = _close(wanted)
    assert set(closed.between) <= between
    assert len(closed.between) == _fewest(wanted)
    assert closed.reached == tuple(wanted)


def test_near_the_fewest_over_a_list() -> None:
    lists = [["abc", "bcd", "cde"], ["abcd", "cdab"], ["abc", "abd", "cbd", "ebd"], ["aab", "aac", "daa", "bad"]]
    assert [len(_close(words).between) for words in lists] == [_fewest(words) for words in lists]


def test_a_pair_that_another_token_takes_first_gets_a_merge_of_its_own() -> None:
    closed = _close(["bc", "ab", "abc"])  # bc is merged first, so abc is a + bc
    assert ("a", "bc") in closed.merges
    assert closed.between == ()


def test_characters_are_kept_whole_where_it_costs_nothing() -> None:
    """`ä½` begins 你, `½ł` ends it and 470 other characters."""
    closed = close_merges({"ä½ł": ["ä", "½", "ł"]}, {"ä", "½", "ł"}, Rule())
    assert closed.between == ("ä½",)


def test_a_very_long_token_is_built_from_the_left() -> None:
    word = "abcdefgh" * 12
    closed = _close([word])
    assert closed.reached == (word,)
    assert _bpe(word, closed.merges) == [word]


def test_a_token_between_that_the_base_has_is_no_way() -> None:
    merges: Mapping[str, Sequence[str]] = {"abc": ["a", "b", "c"]}
    assert close_merges(merges, {"a", "b", "c", "ab", "bc"}, Rule()).left_out == {"abc": NO_TREE}
    assert close_merges(merges, {"a", "b", "c", "ab"}, Rule()).between == ("bc",)
