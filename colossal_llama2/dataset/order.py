"""The order in which training sees the rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def epoch_order(bucket_sizes: npt.NDArray[np.int64], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the rows of an epoch: buckets in order, the rows inside each shuffled.

    It depends on nothing but its arguments, so that any number of ranks can find its place in it again.

    Args:
        bucket_sizes: [K] rows per bucket.
        seed: the run's seed.
        epoch: epoch, from 0; each has its own shuffle.

    Returns:
        [sum of bucket_sizes] global row numbers, each exactly once.
    """
    firsts = np.concatenate([[0], np.cumsum(bucket_sizes)])
    shuffled = [
        first + np.random.default_rng([seed, epoch, bucket]).permutation(size)
        for bucket, (first, size) in enumerate(zip(firsts[:-1], bucket_sizes, strict=True))
    ]
    return np.concatenate(shuffled).astype(np.int64) if shuffled else np.zeros(0, dtype=np.int64)
