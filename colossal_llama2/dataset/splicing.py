"""Documents to full rows: long ones are cut, short ones share, and no token is left over."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.polishing import polish_rows

Splice = Literal["best_fit", "sequential"]


@dataclass(frozen=True)
class Cutting:
    """How documents are cut.

    Attributes:
        max_length: tokens a row can hold.
        bos_each_piece: whether a piece that continues a document in another row begins with a bos of its own.
        min_piece: a document is never cut so that a piece has fewer tokens than this; at most half a row.
    """

    max_length: int
    bos_each_piece: bool = False
    min_piece: int = 1

    @property
    def room(self) -> int:
        """Tokens of a document that a row can hold where it goes on."""
        return self.max_length - self.bos_each_piece


@dataclass(frozen=True)
class Pieces:
    """Documents cut to pieces that fit a row; piece i is `lengths[i]` tokens of `documents[i]` from `starts[i]` on.

    Attributes:
        documents: [P] document number.
        starts: [P] first token inside the document; 0 but for the continuations of a document that was cut.
        lengths: [P] tokens of the document.
        added: [P] 1 where a bos of its own stands before the piece, else 0.
    """

    documents: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    added: npt.NDArray[np.int64]

    @property
    def widths(self) -> npt.NDArray[np.int64]:
        """[P] tokens that the piece takes in a row."""
        return self.lengths + self.added


@dataclass(frozen=True)
class Rows:
    """Which pieces lie in which row: row r has the pieces ``members[offsets[r]:offsets[r + 1]]``, in that order."""

    members: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1


def splice(tokens: npt.NDArray[Any], how: Splice, cutting: Cutting) -> tuple[Pieces, Rows]:
    """Cut documents and lay the pieces into rows.

    Args:
        tokens: [D] tokens per document, none of them empty.
        how: ``best_fit`` keeps documents whole where they fit a row; ``sequential`` lays them end to end in their order
            and cuts where a row is full.
        cutting: how long rows are and how documents may be cut.
    """
    if how == "best_fit":
        pieces = cut_documents(tokens, cutting)
        rows = pack_best_fit(pieces.widths, cutting.max_length)
        row_of = np.empty(len(rows.members), dtype=np.int64)
        row_of[rows.members] = np.repeat(np.arange(len(rows)), np.diff(rows.offsets))
        return pieces, _rows(polish_rows(row_of, pieces.widths, cutting.max_length), pieces.widths)
    return splice_sequential(tokens, cutting)


def cut_documents(tokens: npt.NDArray[Any], cutting: Cutting) -> Pieces:
    """Cut documents longer than a row into full rows and a rest; the pieces of a document stay in order.

    Where the rest would have fewer than `min_piece` tokens, the piece before it gives it some.
    """
    tokens = tokens.astype(np.int64)
    counts = 1 + np.maximum(0, -(-(tokens - cutting.max_length) // cutting.room))
    documents = np.repeat(np.arange(len(tokens)), counts)
    ordinal = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.where(ordinal == 0, 0, cutting.max_length + (ordinal - 1) * cutting.room)
    is_rest = (ordinal > 0) & (ordinal == counts[documents] - 1)
    starts[is_rest] -= np.maximum(0, cutting.min_piece - (tokens[documents] - starts)[is_rest])
    ends = np.append(starts[1:], 0)
    last = ordinal == counts[documents] - 1
    ends[last] = tokens[documents][last]
    return Pieces(documents, starts, ends - starts, (starts > 0).astype(np.int64) * cutting.bos_each_piece)


def pack_best_fit(lengths: npt.NDArray[Any], max_length: int) -> Rows:
    """Put pieces into rows by best-fit decreasing: longest first, each into the fullest row that still has room.

    Best-fit packing loses nothing and truncates nothing (Ding et al., arXiv 2404.10830). Pieces of one length are laid
    together: of them, a row whose gap is g takes g // length before the next row is looked at, which is what laying
    them one by one comes to, because the gap they leave is always the smallest that still fits. Takes a sort of the
    pieces, and a search among the distinct gaps for each distinct length and gap that it meets.

    Args:
        lengths: [P] tokens per piece, each from 1 to `max_length`.
        max_length: tokens a row can hold.

    Returns:
        The rows, the pieces in each longest first.
    """
    lengths = lengths.astype(np.int64)
    order = np.argsort(-lengths, kind="stable")
    falling = lengths[order]
    row_of = np.empty(len(order), dtype=np.int64)
    open_rows = _OpenRows(max_length)
    bounds = [0, *(np.flatnonzero(np.diff(falling)) + 1).tolist(), len(order)] if len(order) else [0]
    for begin, end in pairwise(bounds):
        length = int(falling[begin])
        while begin < end:
            rows, gap = open_rows.take(length, end - begin)
            each = gap // length
            filled = min(len(rows), (end - begin) // each)
            row_of[order[begin : begin + filled * each]] = np.repeat(rows[:filled], each)
            begin += filled * each
            open_rows.put_back(rows[:filled], gap - each * length)
            rest = min(end - begin, each) if filled < len(rows) else 0
            if rest:
                row_of[order[begin : begin + rest]] = rows[filled]
                begin += rest
                open_rows.put_back(rows[filled : filled + 1], gap - rest * length)
            open_rows.put_back(rows[filled + bool(rest) :], gap)
    return _rows(row_of, lengths)


def _rows(row_of: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Rows:
    """List the pieces row by row, in each the longest first."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row_of))]).astype(np.int64)
    return Rows(np.lexsort((-lengths, row_of)), offsets)


class _OpenRows:
    """Rows by the size of their gap."""

    def __init__(self, max_length: int) -> None:
        self.num_rows = 0
        self._max_length = max_length
        self._gaps: list[int] = []  # the distinct sizes of open gaps, ascending
        self._by_gap: dict[int, list[npt.NDArray[np.int64]]] = {}

    def take(self, length: int, count: int) -> tuple[npt.NDArray[np.int64], int]:
        """Take out all rows of the smallest gap that a piece fits into, or new ones for `count` pieces; and the gap."""
        place = bisect_left(self._gaps, length)
        if place < len(self._gaps):
            gap = self._gaps.pop(place)
            return np.concatenate(self._by_gap.pop(gap)), gap
        fresh = -(-count // (self._max_length // length))
        self.num_rows += fresh
        return np.arange(self.num_rows - fresh, self.num_rows), self._max_length

    def put_back(self, rows: npt.NDArray[np.int64], gap: int) -> None:
        """Keep rows, unless they are full."""
        if gap and len(rows):
            if gap not in self._by_gap:
                insort(self._gaps, gap)
            self._by_gap.setdefault(gap, []).append(rows)


def splice_sequential(tokens: npt.NDArray[Any], cutting: Cutting) -> tuple[Pieces, Rows]:
    """Lay documents end to end in their order; where a row is full the document goes on in the next one."""
    tokens = tokens.astype(np.int64)
    if cutting.bos_each_piece or cutting.min_piece > 1:
        return _splice_one_by_one(tokens, cutting)
    ends = np.cumsum(tokens)
    total = int(ends[-1]) if len(ends) else 0
    row_ends = np.arange(cutting.max_length, total + cutting.max_length, cutting.max_length)
    bounds = np.union1d(ends, np.minimum(row_ends, total))
    begins = np.concatenate([[0], bounds[:-1]]).astype(np.int64) if len(bounds) else bounds
    documents = np.searchsorted(ends, begins, side="right")
    pieces = Pieces(
        documents, begins - (ends - tokens)[documents], bounds - begins, np.zeros(len(begins), dtype=np.int64)
    )
    offsets = np.searchsorted(begins, np.arange(0, total, cutting.max_length))
    return pieces, Rows(np.arange(len(begins)), np.append(offsets, len(begins)).astype(np.int64))


def _splice_one_by_one(tokens: npt.NDArray[np.int64], cutting: Cutting) -> tuple[Pieces, Rows]:
    """Do the same where a cut costs a token, or may not stand everywhere."""
    cuts: list[tuple[int, int, int, int]] = []
    offsets, used = [0], 0
    for document, length in enumerate(tokens.tolist()):
        start = 0
        while start < length:
            added = int(cutting.bos_each_piece and start > 0)
            rest, room = length - start, cutting.max_length - used - added
            taken = rest if rest <= room else min(room, rest - cutting.min_piece)
            if taken < min(rest, cutting.min_piece):  # no room for a piece that is long enough
                offsets.append(len(cuts))
                used = 0
                continue
            cuts.append((document, start, taken, added))
            start += taken
            used += taken + added
            if used == cutting.max_length:
                offsets.append(len(cuts))
                used = 0
    if used:
        offsets.append(len(cuts))
    table = np.array(cuts, dtype=np.int64).reshape(-1, 4)
    pieces = Pieces(table[:, 0], table[:, 1], table[:, 2], table[:, 3])
    return pieces, Rows(np.arange(len(cuts)), np.array(offsets, dtype=np.int64))
