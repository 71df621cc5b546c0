"""Order: every row once an epoch, buckets in order, another shuffle for every seed and epoch."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.dataset.order import epoch_order, seeded_permutation


@given(sizes=st.lists(st.integers(1, 40), max_size=8), seed=st.integers(0, 2**40), epoch=st.integers(0, 9))
def test_buckets_come_in_order_each_shuffled(sizes: list[int], seed: int, epoch: int) -> None:
    order = epoch_order(np.array(sizes, dtype=np.int64), seed, epoch)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    bucket_of = np.repeat(np.arange(len(sizes)), sizes)
    assert np.array_equal(bucket_of[order], bucket_of)
    assert np.array_equal(order, epoch_order(np.array(sizes, dtype=np.int64), seed, epoch))


def test_seeds_epochs_and_buckets_have_shuffles_of_their_own() -> None:
    sizes = np.array([60, 60])
    orders = {(seed, epoch): epoch_order(sizes, seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert len({tuple(order.tolist()) for order in orders.values()}) == 4
    for order in orders.values():
        assert not np.array_equal(order[:60], order[60:] - 60)
        assert not np.array_equal(order, np.arange(120))


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    # A run that is resumed elsewhere must go on with the same rows: these numbers may never change.
    assert seeded_permutation(8, 42, 0, 1).tolist() == [5, 4, 2, 7, 6, 0, 1, 3]
    assert seeded_permutation(0, 42).tolist() == []
