"""What a SentencePiece BPE model does with one word, step by step, for any order of new merges.

SentencePiece itself has the last word on every expansion; this is for trying thousands of orders in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from colossal_llama2.tokenizer.piece_model import NORMAL, PieceModel, is_far_below

_NEW: Final = 1 << 40
_LAST: Final = 1 << 50
_NEVER: Final = 1 << 60


class Merges:
    """The pieces of a model, each with its turn: of all pairs of neighbours the one with the smallest is joined first.

    Pieces of the base come first, in the order of their scores, then the new ones, then those runs of spaces that the
    base scores far below everything else.
    """

    def __init__(self, model: PieceModel) -> None:
        normal = [(-entry.score, index) for index, entry in enumerate(model.pieces) if entry.type == NORMAL]
        self._turns = {
            model.pieces[index].piece: _LAST + turn if is_far_below(model.pieces[index]) else turn
            for turn, (_, index) in enumerate(sorted(normal), start=1)
        }
        self._next, self._first = _NEW, _NEW

    def copy(self) -> Merges:
        """Return merges that can be added to without changing these."""
        twin = object.__new__(Merges)
        twin._turns, twin._next, twin._first = dict(self._turns), self._next, self._first
        return twin

    def __contains__(self, piece: object) -> bool:
        return piece in self._turns

    def append(self, pieces: Iterable[str]) -> None:
        """Add new pieces, to be merged one after the other, behind all new ones there are."""
        for piece in pieces:
            assert piece not in self._turns, "a piece is added once"
            self._turns[piece] = self._next
            self._next += 1

    def turns_of(self, pieces: Iterable[str]) -> dict[str, int]:
        """Return the turns of some pieces, for `restore`."""
        return {piece: self._turns[piece] for piece in pieces}

    def raise_to_front(self, pieces: Sequence[str]) -> None:
        """Let new pieces be merged before every other new one, in the order given; the base's still come first."""
        self._first -= len(pieces)
        for turn, piece in enumerate(pieces, self._first):
            self._turns[piece] = turn

    def restore(self, turns: dict[str, int]) -> None:
        """Give pieces the turns they had."""
        self._turns.update(turns)

    def in_order(self, pieces: Iterable[str]) -> list[str]:
        """Return new pieces in the order in which they are merged."""
        return sorted(pieces, key=self._turns.__getitem__)

    def run(self, text: str) -> tuple[tuple[str, ...], list[str]]:
        """Merge the characters of a word until no two neighbours make a piece.

        Args:
            text: the word, with space marks for spaces.

        Returns:
            The pieces it ends as, and the pieces that were made on the way, in order.
        """
        parts, made = list(text), []
        turns = [self._turns.get(left + right, _NEVER) for left, right in pairwise(parts)]
        while turns:
            best = min(turns)
            if best == _NEVER:
                break
            at = turns.index(best)  # of equal turns (one piece, twice in the word) the leftmost
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            made.append(parts[at])
            del turns[at]
            if at:
                turns[at - 1] = self._turns.get(parts[at - 1] + parts[at], _NEVER)
            if at < len(turns):
                turns[at] = self._turns.get(parts[at] + parts[at + 1], _NEVER)
        return tuple(parts), made
