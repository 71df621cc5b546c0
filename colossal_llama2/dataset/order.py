"""The order in which training sees the rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def seeded_permutation(size: int, *keys: int) -> npt.NDArray[np.int64]:
    """Return 0 to `size` - 1 in an order that depends on `keys` (0 or more each) alone, on any machine and version.

    Sorted by the raw bits of PCG64, which numpy promises never to change; what its ``permutation`` makes of them may
    change with any release (NEP 19), and a resumed run would see other rows.
    """
    bits = np.random.PCG64(np.random.SeedSequence(keys)).random_raw(size)
    return np.argsort(bits, kind="stable").astype(np.int64)


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
    firsts = np.concatenate([[0], np.cumsum(bucket_sizes)]).astype(np.int64)
    shuffled = [
        first + seeded_permutation(int(size), seed, epoch, bucket)
        for bucket, (first, size) in enumerate(zip(firsts[:-1], bucket_sizes, strict=True))
    ]
    return np.concatenate(shuffled) if shuffled else np.zeros(0, dtype=np.int64)
