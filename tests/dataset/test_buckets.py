"""Buckets: balanced in every category, none empty, the same on every run, and no row wasted at their ends."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.dataset.buckets import BucketAssigner, level_rows

DOCUMENTS = st.lists(st.tuples(st.integers(1, 500), st.integers(0, 3)), min_size=1, max_size=80)
Ints = npt.NDArray[np.int64]


def assign(tokens: Ints, categories: Ints, num_buckets: int, seed: int) -> npt.NDArray[np.int32]:
    return BucketAssigner(int(categories.max()) + 1, num_buckets, seed).assign(tokens, categories)


@given(documents=DOCUMENTS, num_buckets=st.integers(1, 12), seed=st.integers(0, 3))
def test_every_category_is_balanced_and_no_bucket_empty(
    documents: list[tuple[int, int]], num_buckets: int, seed: int
) -> None:
    tokens, categories = (np.array(column) for column in zip(*documents, strict=True))
    buckets = assign(tokens, categories, num_buckets, seed)
    assert buckets.min() >= 0
    assert buckets.max() < num_buckets
    for category in np.unique(categories):
        own = categories == category
        loads = [int(tokens[own & (buckets == bucket)].sum()) for bucket in range(num_buckets)]
        assert sum(loads) == tokens[own].sum()
        assert max(loads) - min(loads) <= tokens[own].max()
    assert len(set(buckets.tolist())) == min(num_buckets, len(documents))
    assert np.array_equal(buckets, assign(tokens, categories, num_buckets, seed))


@given(documents=DOCUMENTS, num_buckets=st.integers(1, 6), cut=st.integers(0, 80))
def test_blocks_even_out_what_the_ones_before_left(
    documents: list[tuple[int, int]], num_buckets: int, cut: int
) -> None:
    tokens, categories = (np.array(column) for column in zip(*documents, strict=True))
    assigner = BucketAssigner(4, num_buckets, 0)
    parts = [assigner.assign(tokens[part], categories[part]) for part in (slice(None, cut), slice(cut, None))]
    buckets = np.concatenate(parts)
    assert len(set(buckets.tolist())) == min(num_buckets, len(documents))
    for category in range(4):
        own = categories == category
        loads = np.bincount(buckets[own], weights=tokens[own], minlength=num_buckets)
        assert assigner.loads[category].tolist() == loads.tolist()
        assert loads.max() - loads.min() <= tokens[own].max(initial=0)


def test_small_categories_even_out_what_large_ones_left() -> None:
    tokens, categories = np.array([70, 30, 10, 10, 10, 10]), np.array([0, 0, 1, 2, 3, 4])
    buckets = assign(tokens, categories, 2, seed=0)
    assert sorted(np.bincount(buckets, weights=tokens).tolist()) == [70, 70]


def test_the_seed_moves_documents_of_equal_length_only() -> None:
    equal, categories = np.full(40, 9), np.zeros(40, dtype=int)
    assert not np.array_equal(assign(equal, categories, 4, 0), assign(equal, categories, 4, 1))
    distinct = np.arange(1, 41)
    assert np.array_equal(assign(distinct, categories, 4, 0), assign(distinct, categories, 4, 1))


def test_twenty_thousand_categories_of_one_document_even_out() -> None:
    tokens = np.random.default_rng(0).integers(1, 1000, 20_000)
    loads = np.bincount(assign(tokens, np.arange(20_000), 10, seed=0), weights=tokens)
    assert loads.max() / loads.min() < 1.001


def test_the_longest_come_first() -> None:
    tokens, categories = np.array([1, 1, 1, 1, 4]), np.zeros(5, dtype=int)
    assert np.bincount(assign(tokens, categories, 2, seed=0), weights=tokens).tolist() == [4, 4]


@given(
    documents=st.lists(st.integers(1, 300), min_size=4, max_size=120),
    num_buckets=st.integers(1, 6),
    max_length=st.integers(12, 400),
    elsewhere=st.integers(0, 5000),
)
def test_levelling_moves_less_than_a_row_and_empties_no_bucket(
    documents: list[int], num_buckets: int, max_length: int, elsewhere: int
) -> None:
    tokens = np.array(documents)
    before = assign(tokens, np.zeros(len(tokens), dtype=int), num_buckets, seed=0)
    others = np.arange(num_buckets) * elsewhere
    totals = np.bincount(before, weights=tokens, minlength=num_buckets).astype(np.int64) + others
    after = level_rows(tokens, before, totals, max_length)
    levelled = np.bincount(after, weights=tokens, minlength=num_buckets).astype(np.int64) + others
    assert levelled.sum() == totals.sum()
    assert np.all(levelled <= totals + max_length)
    assert set(before.tolist()) == set(after.tolist())
    taken = np.bincount(before, weights=tokens * (before != after), minlength=num_buckets)
    assert np.all(taken < max_length + tokens.max())


def test_levelling_saves_the_rows_that_chance_would_cost() -> None:
    tokens = np.random.default_rng(0).geometric(1 / 100, size=20_000).clip(1, 2048)
    before = assign(tokens, np.zeros(len(tokens), dtype=int), 10, seed=0)
    max_length = int(tokens.sum() / 961)  # every bucket needs a tenth of a row more than 96

    def rows(buckets: npt.NDArray[np.int32]) -> int:
        return int(np.ceil(np.bincount(buckets, weights=tokens) / max_length).sum())

    after = level_rows(tokens, before, np.bincount(before, weights=tokens).astype(np.int64), max_length)
    assert rows(before) == 970
    assert rows(after) <= 961 + 3  # a sixth of a row is left free in each
