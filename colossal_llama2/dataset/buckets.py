"""Documents to buckets: every bucket gets its share of every category."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.order import seeded_permutation


class BucketAssigner:
    """Gives documents to buckets block by block, so that each category's tokens are spread evenly.

    Longest first onto the bucket that holds least of the category so far, and least of everything where that is equal
    (Graham's LPT rule): inside a block no bucket gets ahead of another in a category by more than that category's
    longest document on it, and the next block begins with what the buckets have. A document stays whole in one bucket,
    so one that is larger than a bucket's share makes its bucket larger. With at least as many documents as buckets none
    stays empty.

    Args:
        num_categories: categories of the corpus.
        num_buckets: how many buckets.
        seed: decides the order of documents of equal length.

    Attributes:
        loads: [C, B] int64, tokens of each category in each bucket so far.
    """

    def __init__(self, num_categories: int, num_buckets: int, seed: int) -> None:
        self.loads = np.zeros((num_categories, num_buckets), dtype=np.int64)
        self._seed = seed
        self._num_blocks = 0

    def assign(self, tokens: npt.NDArray[Any], categories: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Return the bucket of each document of a block.

        Args:
            tokens: [D] tokens per document.
            categories: [D] category number per document.
        """
        tie_break = seeded_permutation(len(tokens), self._seed, 0, self._num_blocks)
        self._num_blocks += 1
        order = np.lexsort((tie_break, -tokens.astype(np.int64), categories))
        numbers, begins = np.unique(categories[order], return_index=True)
        groups = np.split(order, begins[1:]) if len(numbers) else []
        sizes = np.array([int(tokens[group].sum(dtype=np.int64)) for group in groups], dtype=np.int64)
        buckets = np.empty(len(tokens), dtype=np.int32)
        totals = self.loads.sum(axis=0)
        for index in np.lexsort((numbers, -sizes)):  # largest category first: it evens out the total least well
            group = groups[index]
            buckets[group] = _spread(tokens[group], self.loads[numbers[index]], totals)
        return buckets


def _spread(
    lengths: npt.NDArray[Any], loads: npt.NDArray[np.int64], totals: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    """Spread one category's documents, longest first; add them to its loads and to the buckets' totals in place."""
    chosen = np.empty(len(lengths), dtype=np.int32)
    heap = [
        (load, total, bucket) for bucket, (load, total) in enumerate(zip(loads.tolist(), totals.tolist(), strict=True))
    ]
    heapq.heapify(heap)
    for place, length in enumerate(lengths.tolist()):
        load, total, bucket = heap[0]
        chosen[place] = bucket
        heapq.heapreplace(heap, (load + length, total + length, bucket))
    for load, total, bucket in heap:
        loads[bucket], totals[bucket] = load, total
    return chosen


def level_rows(
    tokens: npt.NDArray[Any], buckets: npt.NDArray[np.int32], totals: npt.NDArray[np.int64], max_length: int
) -> npt.NDArray[np.int32]:
    """Move short documents so that no bucket ends in a row that is nearly empty.

    A bucket's last row is full only by chance, which costs half a row a bucket: a fifth of a percent where there are
    ten buckets of 270 rows. What stands over in one bucket is moved to others whose last row has room for it: less
    than a row from or to any bucket. A sixth of a row is left free in each, since packing cannot fill every row to the
    last token.

    Args:
        tokens: [D] tokens per document that may be moved.
        buckets: [D] bucket of each.
        totals: [B] tokens in each bucket; of these and others.
        max_length: tokens a row can hold.

    Returns:
        [D] the bucket of each document now.
    """
    buckets = buckets.copy()
    over = ((totals + max_length // 6) % max_length).astype(np.int64)
    room = np.where(over > 0, max_length - over, 0)
    by_bucket = {bucket: _ascending(tokens, np.flatnonzero(buckets == bucket)) for bucket in range(len(totals))}
    receivers = np.argsort(over, kind="stable")[::-1].tolist()
    for giver in np.argsort(over, kind="stable").tolist():
        receivers = [bucket for bucket in receivers if bucket != giver]
        if not over[giver] or int(room[receivers].sum()) < over[giver]:
            continue
        moves = _moves(tokens, by_bucket[giver], int(over[giver]), {bucket: int(room[bucket]) for bucket in receivers})
        if moves is None or len(moves) >= len(by_bucket[giver]):
            continue
        for document, receiver in moves:
            buckets[document] = receiver
            room[receiver] -= tokens[document]
        room[giver] = 0
    return buckets


def _ascending(tokens: npt.NDArray[Any], documents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return documents[np.argsort(tokens[documents], kind="stable")]


def _moves(
    tokens: npt.NDArray[Any], documents: npt.NDArray[np.int64], over: int, room: dict[int, int]
) -> list[tuple[int, int]] | None:
    """Choose documents of `over` tokens or a little more, and a bucket for each; None where they do not fit.

    Args:
        tokens: [D] tokens per document.
        documents: those of the bucket, shortest first.
        over: tokens that must go.
        room: room in the last row of each bucket that may take some.
    """
    lengths = tokens[documents]
    last = len(lengths) - 1
    moves: list[tuple[int, int]] = []
    while over > 0:
        if last < 0:
            return None
        # the longest that goes into what must go; where all are longer, the shortest
        place = max(0, int(np.searchsorted(lengths[: last + 1], over, side="right")) - 1)
        length, last = int(lengths[place]), place - 1
        fitting = [bucket for bucket in room if room[bucket] >= length]
        if fitting:
            receiver = min(fitting, key=room.__getitem__)
            moves.append((int(documents[place]), receiver))
            room[receiver] -= length
            over -= length
    return moves
