"""Documents to buckets: every bucket gets its share of every category."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.order import seeded_permutation


def assign_buckets(
    tokens: npt.NDArray[Any], categories: npt.NDArray[Any], num_buckets: int, seed: int
) -> npt.NDArray[np.int64]:
    """Give each document a bucket, so that each category's tokens are spread evenly.

    Longest first onto the bucket that holds least of the category so far, and least of everything where that is equal
    (Graham's LPT rule): no bucket exceeds another in a category by more than that category's longest document on it. A
    document stays whole in one bucket, so one that is larger than a bucket's share makes its bucket larger. With at
    least as many documents as buckets none stays empty.

    Args:
        tokens: [D] tokens per document.
        categories: [D] category number per document.
        num_buckets: how many buckets.
        seed: decides the order of documents of equal length.

    Returns:
        [D] bucket number per document.
    """
    tie_break = seeded_permutation(len(tokens), seed, 0)
    order = np.lexsort((tie_break, -tokens.astype(np.int64), categories))
    numbers, begins = np.unique(categories[order], return_index=True)
    groups = np.split(order, begins[1:]) if len(numbers) else []
    sizes = np.array([int(tokens[group].sum()) for group in groups], dtype=np.int64)
    buckets = np.empty(len(tokens), dtype=np.int64)
    totals = np.zeros(num_buckets, dtype=np.int64)
    for index in np.lexsort((numbers, -sizes)):  # largest category first: it evens out the total least well
        group = groups[index]
        buckets[group] = _spread(tokens[group], totals)
    return buckets


def _spread(lengths: npt.NDArray[Any], totals: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Spread one category's documents, longest first, and add them to the buckets' totals in place."""
    chosen = np.empty(len(lengths), dtype=np.int64)
    # The first ones each find a bucket that has nothing of the category, the emptiest first.
    first = np.argsort(totals, kind="stable")[: len(lengths)]
    chosen[: len(first)] = first
    totals[first] += lengths[: len(first)]
    heap = [
        (load, total, bucket)
        for load, total, bucket in zip(lengths.tolist(), totals[first].tolist(), first.tolist(), strict=False)
    ]
    heapq.heapify(heap)
    for place, length in enumerate(lengths[len(first) :].tolist(), len(first)):
        load, total, bucket = heap[0]
        chosen[place] = bucket
        heapq.heapreplace(heap, (load + length, total + length, bucket))
    for _, total, bucket in heap:
        totals[bucket] = total
    return chosen
