"""The fewest pieces that must be added so that words can be built by joining two pieces at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_LONGEST: Final = 24
"""A word of more parts grows from one end instead: all trees of it would take time with the cube of its length."""
_PASSES: Final = 10
_WORTH_A_PASS: Final = 0.001
_PREFERENCE: Final = 1e-3
_TRIES: Final = 2000
_MOST_WORDS: Final = 50
_MOST_PARTS: Final = 6
"""A word of six parts has 42 trees, one of seven 132: a group with a longer word is not searched."""


@dataclass(frozen=True)
class Intermediates:
    """What must be added to build some words.

    Attributes:
        pieces: to be added, shorter first.
        impossible: words that cannot be built from pieces that are allowed.
    """

    pieces: tuple[str, ...]
    impossible: tuple[str, ...]


def fewest_intermediates(
    parts: Mapping[str, Sequence[str]], known: Container[str], allows: Callable[[str], bool]
) -> Intermediates:
    """Choose pieces so that every word is the root of a binary tree over its parts, whose inner nodes are pieces.

    One word alone is solved exactly unless it repeats itself: over all trees of it, what is known or chosen already
    costs nothing, anything else one piece. Which of many equal trees a word takes decides how much it shares with the
    others, so of two pieces the one that more words could use is preferred, and each word is solved again, knowing what
    the others chose, until the number hardly falls. Then every group of words that could share pieces is searched
    for a smaller choice. The result is the true minimum wherever that search ends within `_TRIES` steps; in a group of
    more than `_MOST_WORDS` it is not begun, and the choice made before stands.

    Args:
        parts: for each word the parts it now ends as; at least two, joined they are the word.
        known: pieces there are; the words are among them.
        allows: says of a text whether a piece may be added for it.
    """
    return _Choice(parts, known, allows).settle()


class _Choice:
    """The trees chosen so far, and how many words use each piece that would be added."""

    def __init__(
        self, parts: Mapping[str, Sequence[str]], known: Container[str], allows: Callable[[str], bool]
    ) -> None:
        self._parts, self._known, self._allows = parts, known, allows
        self._uses: Counter[str] = Counter()
        self._trees: dict[str, frozenset[str]] = {}
        wanted_by: Counter[str] = Counter()
        for part in parts.values():
            if len(part) <= _LONGEST:
                wanted_by.update({text for text in _inner_texts(part) if text not in known})
        most = max(wanted_by.values(), default=0) + 1
        self._price = {
            text: 1 - _PREFERENCE * count / most if allows(text) else math.inf for text, count in wanted_by.items()
        }

    def settle(self) -> Intermediates:
        """Choose a tree for every word, then improve the choice until it no longer gets smaller."""
        for word in sorted(self._parts, key=lambda word: len(self._parts[word])):
            tree = self._cheapest_tree(word)
            if tree is not None:
                self._take(word, tree)
        for _ in range(_PASSES):
            before = len(self._uses)
            for word, tree in list(self._trees.items()):
                self._release(word)
                self._take(word, self._cheapest_tree(word) or tree)
            if len(self._uses) > (1 - _WORTH_A_PASS) * before:
                break
        short = [word for word in self._trees if len(self._parts[word]) <= _MOST_PARTS]
        for group in _groups({word: self._unknown_texts(word) for word in short}):
            if len(group) <= _MOST_WORDS:
                self._search(group)
        impossible = tuple(word for word in self._parts if word not in self._trees)
        return Intermediates(tuple(sorted(self._uses, key=lambda piece: (len(piece), piece))), impossible)

    def _search(self, group: Sequence[str]) -> None:
        """Look for a smaller choice for words that share no piece with others but longer ones."""
        before = {word: self._trees[word] for word in group}
        for word in group:
            self._release(word)
        free = frozenset(self._uses)  # what longer words need is there anyway
        options = {word: self._trees_of(word, free) for word in group}
        chosen = frozenset().union(*before.values()) - free
        better = _Search(options, chosen).smallest()
        for word in group:
            fits = (tree for tree in options[word] if tree <= better)
            self._take(word, next(fits) | (free & before[word]) if len(better) < len(chosen) else before[word])

    def _unknown_texts(self, word: str) -> list[str]:
        return [text for text in _inner_texts(self._parts[word]) if text not in self._known]

    def _trees_of(self, word: str, free: frozenset[str]) -> list[frozenset[str]]:
        """Return what each tree of a word would add beside what is free, of those that add no more than they must."""
        part = self._parts[word]
        sets: dict[tuple[int, int], set[frozenset[str]]] = {(at, at + 1): {frozenset()} for at in range(len(part))}
        for length in range(2, len(part) + 1):
            for begin in range(len(part) - length + 1):
                end, text = begin + length, "".join(part[begin : begin + length])
                is_there = length == len(part) or text in self._known or text in free
                own = frozenset() if is_there else frozenset((text,))
                allowed = not own or self._allows(text)
                sets[begin, end] = {
                    own | left | right
                    for at in range(begin + 1, end)
                    for left in sets[begin, at]
                    for right in sets[at, end]
                    if allowed
                }
        found = sets[0, len(part)]
        return sorted(
            (tree for tree in found if not any(less < tree for less in found)), key=lambda t: (len(t), sorted(t))
        )

    def _take(self, word: str, tree: frozenset[str]) -> None:
        self._trees[word] = tree
        self._uses.update(tree)

    def _release(self, word: str) -> None:
        for piece in self._trees[word]:
            self._uses[piece] -= 1
            if not self._uses[piece]:
                del self._uses[piece]

    def _cost(self, text: str) -> float:
        if text in self._known or text in self._uses:
            return 0.0
        price = self._price.get(text)
        if price is None:
            return 1.0 if self._allows(text) else math.inf
        return price

    def _cheapest_tree(self, word: str) -> frozenset[str] | None:
        """Return what must be added to build a word, or None where nothing that is allowed builds it."""
        part = self._parts[word]
        if len(part) > _LONGEST:
            return self._chain(part)
        best: dict[tuple[int, int], float] = {(at, at + 1): 0.0 for at in range(len(part))}
        cuts: dict[tuple[int, int], int] = {}
        for length in range(2, len(part) + 1):
            for begin in range(len(part) - length + 1):
                end = begin + length
                cost, cut = min((best[begin, at] + best[at, end], at) for at in range(begin + 1, end))
                whole = length == len(part)
                best[begin, end] = cost if whole else cost + self._cost("".join(part[begin:end]))
                cuts[begin, end] = cut
        if math.isinf(best[0, len(part)]):
            return None
        return self._nodes(part, cuts)

    def _nodes(self, part: Sequence[str], cuts: dict[tuple[int, int], int]) -> frozenset[str]:
        """Collect the texts of a tree's inner nodes that are not known; the root is the word itself."""
        needed, open_spans = set(), [(0, len(part))]
        while open_spans:
            begin, end = open_spans.pop()
            if end - begin < 2:
                continue
            cut = cuts[begin, end]
            open_spans += [(begin, cut), (cut, end)]
            if end - begin < len(part) and (text := "".join(part[begin:end])) not in self._known:
                needed.add(text)
        return frozenset(needed)

    def _chain(self, part: Sequence[str]) -> frozenset[str] | None:
        """Grow a word from the first part that may be joined to the next, to its end and then to its beginning."""
        begin = next(
            (at for at in range(len(part) - 1) if not math.isinf(self._cost(part[at] + part[at + 1]))), len(part)
        )
        texts = ["".join(part[begin:end]) for end in range(begin + 2, len(part) + 1)]
        texts += ["".join(part[start:]) for start in range(begin - 1, 0, -1)]
        texts = [text for text in texts if text != "".join(part)]
        if begin == len(part) or any(math.isinf(self._cost(text)) for text in texts):
            return None
        return frozenset(text for text in texts if text not in self._known)


def _inner_texts(part: Sequence[str]) -> list[str]:
    """Return the text of every run of two or more parts that is not the whole."""
    size = len(part)
    return [
        "".join(part[begin:end]) for begin in range(size) for end in range(begin + 2, size + 1) if end - begin < size
    ]


def _groups(texts: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Split words into groups linked by texts they have in common; one without a text that stands twice is no group."""
    leader = {word: word for word in texts}

    def find(word: str) -> str:
        while leader[word] != word:
            leader[word] = leader[leader[word]]
            word = leader[word]
        return word

    first: dict[str, str] = {}
    for word in leader:
        for text in texts[word]:
            leader[find(word)] = find(first.setdefault(text, word))
    groups: dict[str, list[str]] = {}
    for word in leader:
        groups.setdefault(find(word), []).append(word)
    return [group for group in groups.values() if len(group) > 1 or len(set(texts[group[0]])) < len(texts[group[0]])]


class _Search:
    """Goes through all ways of choosing one tree a word, as far as they could still be smaller than the best known."""

    def __init__(self, options: Mapping[str, Sequence[frozenset[str]]], best: frozenset[str]) -> None:
        self._options, self._best, self._tries = options, best, _TRIES

    def smallest(self) -> frozenset[str]:
        """Return the smallest choice found before the tries were used up."""
        self._go_on(frozenset(), list(self._options))
        return self._best

    def _go_on(self, chosen: frozenset[str], words: list[str]) -> None:
        self._tries -= 1
        costs = {word: min(len(tree - chosen) for tree in self._options[word]) for word in words}
        left = [word for word in words if costs[word]]
        if not left:
            if len(chosen) < len(self._best):
                self._best = chosen
            return
        hardest = max(left, key=lambda word: costs[word])
        for tree in sorted(self._options[hardest], key=lambda tree: len(tree - chosen)):
            if self._tries <= 0 or len(chosen) + max(costs[hardest], len(tree - chosen)) >= len(self._best):
                break
            self._go_on(chosen | tree, left)
