"""The last tenth of a percent: rows that packing left a little short are filled to the token with short pieces.

Best-fit decreasing runs out of short pieces at the end and leaves gaps of a few tokens in a third of the rows, and one
row that is nearly empty. Here the short pieces of such rows are taken out again, and for each row those are chosen that
fill it best (subset sum, by bit sets). Nothing but whole pieces moves.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.order import seeded_permutation

_MOST_ROWS: Final = 2048
_CANDIDATES: Final = 24
_ATTEMPTS: Final = 32
_WORTH_A_ROW: Final = 2000
"""One row in so many is 0.05% of fill, and taking it away costs more than all packing before it."""
_SHORT: Final = (4, 8, 5, 4, 6, 3, 4, 5)
"""What is taken out, in one attempt after another: pieces of up to a fourth of a row, an eighth, ..."""


def polish_rows(
    row_of: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], max_length: int
) -> npt.NDArray[np.int64]:
    """Return [P] a row for every piece, in no more rows than before: in the fewest there can be, or nearly so.

    Args:
        row_of: [P] row of each piece, from 0 without a hole.
        lengths: [P] tokens of each.
        max_length: tokens a row can hold.
    """
    fewest = -(-int(lengths.sum()) // max_length)
    for attempt in range(_ATTEMPTS):
        if len(row_of) == 0 or int(row_of.max()) + 1 <= fewest + fewest // _WORTH_A_ROW:
            break
        row_of = _refill(row_of, lengths, max_length, attempt)
    return row_of


def _refill(
    row_of: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], max_length: int, attempt: int
) -> npt.NDArray[np.int64]:
    """Take the short pieces out of the rows with gaps, and lay them anew, the rows in another order each time."""
    num_rows = int(row_of.max()) + 1
    gaps = max_length - np.bincount(row_of, weights=lengths, minlength=num_rows).astype(np.int64)
    opened = np.argsort(-gaps, kind="stable")[:_MOST_ROWS]
    opened = opened[gaps[opened] > 0]
    is_open = np.zeros(num_rows, dtype=np.bool_)
    is_open[opened] = True
    emptiest = int(opened[0])
    taken_out = is_open[row_of] & ((lengths <= max_length // _SHORT[attempt % len(_SHORT)]) | (row_of == emptiest))
    if len(opened) < 2:
        return row_of
    pool = _Pool(np.flatnonzero(taken_out), lengths)
    room = gaps + np.bincount(row_of[taken_out], weights=lengths[taken_out], minlength=num_rows).astype(np.int64)
    refilled = row_of.copy()
    others = opened[1:]
    steps = room[others] // (max_length >> (7 - attempt % 4) or 1)
    for row in others[np.lexsort((seeded_permutation(len(others), attempt), steps))].tolist():
        refilled[pool.take(int(room[row]))] = row
    left = pool.rest()
    if int(lengths[left].sum()) > max_length:
        return row_of  # no better than before
    refilled[left] = emptiest
    return refilled if len(left) else refilled - (refilled > emptiest)


class _Pool:
    """Pieces that wait for a row, shortest first."""

    def __init__(self, pieces: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> None:
        self._pieces = pieces[np.argsort(lengths[pieces], kind="stable")]
        self._lengths = lengths

    def take(self, room: int) -> npt.NDArray[np.int64]:
        """Take out the pieces that fill `room` tokens best: longest first while there is much, then by subset sum."""
        taken: list[npt.NDArray[np.int64]] = []
        while len(self._pieces):
            mean = float(self._lengths[self._pieces].mean())
            many = int(room / mean) - _CANDIDATES // 4
            if many < 1:
                break
            # evenly over all lengths, so that short ones are left for the rows that follow
            chosen = np.unique(np.linspace(0, len(self._pieces) - 1, min(many, len(self._pieces))).astype(np.int64))
            sums = np.cumsum(self._lengths[self._pieces[chosen]])
            chosen = chosen[: int(np.searchsorted(sums, room, side="right"))]
            if not len(chosen):
                break
            taken.append(self._remove(chosen))
            room -= int(self._lengths[taken[-1]].sum())
        candidates = np.unique(
            np.linspace(0, len(self._pieces) - 1, min(_CANDIDATES, len(self._pieces))).astype(np.int64)
        )
        chosen = candidates[_best_subset(self._lengths[self._pieces[candidates]].tolist(), room)]
        taken.append(self._remove(chosen))
        return np.concatenate(taken)

    def rest(self) -> npt.NDArray[np.int64]:
        """Return what is left."""
        return self._pieces

    def _remove(self, places: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        pieces = self._pieces[places]
        self._pieces = np.delete(self._pieces, places)
        return pieces


def _best_subset(lengths: list[int], room: int) -> list[int]:
    """Return places of the lengths whose sum comes nearest to `room` from below.

    Bit n of a set says whether some of the lengths so far add up to n; the sets in between tell which.
    """
    mask = (1 << (room + 1)) - 1
    sets = [1]
    for length in lengths:
        sets.append((sets[-1] | sets[-1] << length) & mask)
    total = sets[-1].bit_length() - 1
    chosen = []
    for place in range(len(lengths) - 1, -1, -1):
        if not sets[place] >> total & 1:
            chosen.append(place)
            total -= lengths[place]
    return chosen
