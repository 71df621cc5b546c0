"""Documents to buckets: every bucket gets its share of every category."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt


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
    tie_break = np.random.default_rng([seed, 0]).permutation(len(tokens))
    buckets = np.empty(len(tokens), dtype=np.int64)
    totals = np.zeros(num_buckets, dtype=np.int64)
    numbers, sizes = _category_sizes(tokens, categories)
    for category in numbers[np.lexsort((numbers, -sizes))]:  # largest first: it evens out least well
        members = np.flatnonzero(categories == category)
        members = members[np.lexsort((tie_break[members], -tokens[members]))]
        heap = [(0, int(total), bucket) for bucket, total in enumerate(totals)]
        heapq.heapify(heap)
        for document, length in zip(members.tolist(), tokens[members].tolist(), strict=True):
            load, total, bucket = heap[0]
            buckets[document] = bucket
            heapq.heapreplace(heap, (load + length, total + length, bucket))
        for _, total, bucket in heap:
            totals[bucket] = total
    return buckets


def _category_sizes(
    tokens: npt.NDArray[Any], categories: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    numbers, inverse = np.unique(categories, return_inverse=True)
    return numbers.astype(np.int64), np.bincount(inverse, weights=tokens).astype(np.int64)
