"""Merges for new tokens, behind all merges of a byte-level base, and the few tokens in between that they need.

A merge added last is made last. So after each one the tokens before it still come out as they did, and a token whose
own letters have been merged down to one stays that one whatever is added behind it: every token reached here stays
reached, and the base's own merges all happen first. Nothing has to be tried and taken back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from colossal_llama2.tokenizer.byte_level_model import Merge
from colossal_llama2.tokenizer.byte_level_tokens import may_stand, torn_ends

_LARGEST_TREE: Final = 32
"""More parts than this are joined from the left: the best tree takes time with the third power of the parts."""

Cost = tuple[int, int, int]
"""New tokens in between, characters they tear apart, and how many other pieces could use them (negative)."""

NO_PAIR: Final = "no two tokens join to it"
NOT_ALLOWED: Final = "every way to join it goes through a token that old text may hold"
NO_TREE: Final = "every way to join it goes through a token that the base has, but does not merge there"


@dataclass(frozen=True)
class Rule:
    """What may be added on the way to a wanted token.

    Attributes:
        may_add: whether tokens nobody asked for may be added at all.
        allows: says of a text whether such a token may stand for it.
    """

    may_add: bool = True
    allows: Callable[[str], bool] = lambda _: True


@dataclass(frozen=True)
class ClosedMerges:
    """New tokens and the merges that build them.

    Attributes:
        reached: the wanted tokens that come out of their own letters, in the order given.
        between: the tokens added only to build others, in the order of their first merge.
        merges: the new merges, in order; all stand behind the base's.
        left_out: each wanted token that is not reached, with the reason.
    """

    reached: tuple[str, ...]
    between: tuple[str, ...]
    merges: tuple[Merge, ...]
    left_out: dict[str, str]

    @property
    def tokens(self) -> tuple[str, ...]:
        """All new tokens in the order of their ids."""
        return self.reached + self.between


def close_merges(wanted: Mapping[str, Sequence[str]], base: Container[str], rule: Rule) -> ClosedMerges:
    """Build merges for the wanted tokens, one after the other, with as few tokens in between as are found.

    Each token is taken as base and earlier new merges cut it; of all trees that join those parts the one that needs
    the fewest tokens nobody asked for is made, of equal ones the one that tears the fewest characters, of equal ones
    the one whose tokens the most other pieces need too. What other pieces need is known from a first round. (The
    fewest over a whole list is a covering problem; this is a greedy answer to it.)

    Args:
        wanted: tokens in letters, in the order in which they are to be merged, each with its cut by the base's
            merges; none is a token of the base.
        base: the tokens of the base.
        rule: what may be added.
    """
    first = _Closer(wanted, base, rule)
    closed = first.close()
    if not closed.between:
        return closed
    second = _Closer(wanted, base, rule, first.missing).close()
    return min(closed, second, key=lambda one: (len(one.left_out), len(one.between)))


def merge_parts(parts: Sequence[str], ranks: Mapping[Merge, int]) -> list[str]:
    """Apply merges to neighbouring tokens, the lowest rank first and of equal ones the leftmost, until none applies."""
    parts = list(parts)
    while len(parts) > 1:
        best: tuple[int, int] | None = None
        for place, pair in enumerate(pairwise(parts)):
            rank = ranks.get(pair)
            if rank is not None and (best is None or rank < best[0]):
                best = rank, place
        if best is None:
            break
        place = best[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


@dataclass
class _Closer:
    """One round: the merges and tokens made so far."""

    wanted: Mapping[str, Sequence[str]]
    base: Container[str]
    rule: Rule
    popularity: Mapping[str, int] = field(default_factory=dict)
    ranks: dict[Merge, int] = field(default_factory=dict)
    made: dict[str, None] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._open = dict.fromkeys(self.wanted)  # wanted and not given up

    def close(self) -> ClosedMerges:
        left_out: dict[str, str] = {}
        for token, parts in self.wanted.items():
            reason = self._reach(parts)
            if reason:
                left_out[token] = reason
                del self._open[token]
        between = tuple(token for token in self.made if token not in self._open)
        return ClosedMerges(tuple(self._open), between, tuple(self.ranks), left_out)

    def _reach(self, parts: Sequence[str]) -> str | None:
        """Add merges until a token comes out of its parts; return why it does not, having added none."""
        current = merge_parts(parts, self.ranks)
        self._note_missing(current)
        merges, tokens = len(self.ranks), len(self.made)
        while len(current) > 1:
            merge = self._first_merge(current, self.rule)
            # A merge takes every such pair, so a part that stands twice can be lost to the tree that was planned.
            if merge is None:
                reason = self._reason(current)
                _shorten(self.ranks, merges)
                _shorten(self.made, tokens)
                return reason
            self.ranks[merge] = len(self.ranks)
            self.made.setdefault(merge[0] + merge[1])
            current = merge_parts(current, self.ranks)
        return None

    def _reason(self, parts: Sequence[str]) -> str:
        if not self.rule.may_add and self._first_merge(parts, Rule(True, self.rule.allows)):
            return NO_PAIR
        return NOT_ALLOWED if self._first_merge(parts, Rule()) else NO_TREE

    def _first_merge(self, parts: Sequence[str], rule: Rule) -> Merge | None:
        """Return the merge to add next on the way to joining the parts, or None where there is no way."""
        if len(parts) <= _LARGEST_TREE:
            return self._tree(parts, rule, is_piece=True)
        for count in range(_LARGEST_TREE, 1, -1):
            merge = self._tree(parts[:count], rule, is_piece=False)
            if merge is not None:
                return merge
        return None

    def _tree(self, parts: Sequence[str], rule: Rule, is_piece: bool) -> Merge | None:
        """Find the cheapest tree over the parts, by intervals, and return its first merge: of two leaves."""
        count = len(parts)
        costs: dict[tuple[int, int], tuple[Cost, int]] = {}
        zero: Cost = (0, 0, 0)
        for length in range(2, count + 1):
            for begin in range(count - length + 1):
                end = begin + length
                whole = is_piece and length == count
                own = zero if whole else self._cost_of("".join(parts[begin:end]), rule)
                if own is None:
                    continue
                best: tuple[Cost, int] | None = None
                for middle in range(begin + 1, end):
                    left = (zero, 0) if middle == begin + 1 else costs.get((begin, middle))
                    right = (zero, 0) if end == middle + 1 else costs.get((middle, end))
                    if left is None or right is None:
                        continue
                    cost = tuple(map(sum, zip(own, left[0], right[0], strict=True)))
                    if best is None or cost < best[0]:
                        best = (cost[0], cost[1], cost[2]), middle
                if best is not None:
                    costs[begin, end] = best
        if (0, count) not in costs:
            return None
        begin, end = 0, count
        while end - begin > 2:
            middle = costs[begin, end][1]
            begin, end = (begin, middle) if middle - begin > 1 else (middle, end)
        return parts[begin], parts[begin + 1]

    def _cost_of(self, token: str, rule: Rule) -> Cost | None:
        """Say what making a token on the way costs; None where it may not be made."""
        if token in self.made:
            return (0, 0, 0)
        if token in self.base or not rule.may_add:
            return None
        if token in self._open:
            return (0, 0, 0)
        if not may_stand(token, rule.allows):
            return None
        return (1, torn_ends(token), -self.popularity.get(token, 0))

    def _note_missing(self, parts: Sequence[str]) -> None:
        """Count what could be added for a token that cannot be joined without adding."""
        if not 3 <= len(parts) <= _LARGEST_TREE:
            return
        spans = {
            "".join(parts[begin:end]) for begin in range(len(parts)) for end in range(begin + 2, len(parts) + 1)
        } - {"".join(parts)}
        candidates = [token for token in spans if token not in self._open and token not in self.made]
        self.missing.update(candidates)


def _shorten(items: dict[Any, Any], length: int) -> None:
    """Take back what was put into a dictionary last."""
    while len(items) > length:
        items.popitem()
