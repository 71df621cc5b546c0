"""Documents to full rows: long ones are cut, short ones share, and no token is left over."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Pieces:
    """Documents cut to pieces that fit a row; piece i is `lengths[i]` tokens of `documents[i]` from `starts[i]` on.

    Attributes:
        documents: [P] document number.
        starts: [P] first token inside the document; 0 but for the continuations of a document that was cut.
        lengths: [P] tokens.
    """

    documents: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


def cut_documents(tokens: npt.NDArray[Any], max_length: int) -> Pieces:
    """Cut documents longer than a row into full rows and a rest; the pieces of a document stay in order.

    Args:
        tokens: [D] tokens per document, none of them empty.
        max_length: tokens a row can hold.
    """
    counts = -(-tokens.astype(np.int64) // max_length)
    documents = np.repeat(np.arange(len(tokens)), counts)
    ordinal = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = ordinal * max_length
    return Pieces(documents, starts, np.minimum(tokens[documents] - starts, max_length))


def pack_best_fit(lengths: npt.NDArray[Any], max_length: int) -> list[list[int]]:
    """Put pieces into rows by best-fit decreasing: longest first, each into the fullest row that still has room.

    Best-fit packing loses nothing and truncates nothing (Ding et al., arXiv 2404.10830). Takes O(P log P) for the sort
    and a search among the distinct gaps for each piece.

    Args:
        lengths: [P] tokens per piece, each from 1 to `max_length`.
        max_length: tokens a row can hold.

    Returns:
        For each row, the numbers of its pieces, longest first.
    """
    rows: list[list[int]] = []
    gaps: list[int] = []  # the distinct sizes of open gaps, ascending
    rows_by_gap: dict[int, list[int]] = {}
    for piece in np.argsort(-lengths.astype(np.int64), kind="stable").tolist():
        length = int(lengths[piece])
        place = bisect_left(gaps, length)
        if place == len(gaps):
            row, gap = len(rows), max_length
            rows.append([])
        else:
            gap = gaps[place]
            row = rows_by_gap[gap].pop()
            if not rows_by_gap[gap]:
                del rows_by_gap[gap], gaps[place]
        rows[row].append(piece)
        left = gap - length
        if left:
            if left not in rows_by_gap:
                insort(gaps, left)
            rows_by_gap.setdefault(left, []).append(row)
    return rows
