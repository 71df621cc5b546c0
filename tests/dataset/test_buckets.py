"""Buckets: balanced in every category, none empty, the same on every run."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.dataset.buckets import assign_buckets

DOCUMENTS = st.lists(st.tuples(st.integers(1, 500), st.integers(0, 3)), min_size=1, max_size=80)


@given(documents=DOCUMENTS, num_buckets=st.integers(1, 12), seed=st.integers(0, 3))
def test_every_category_is_balanced_and_no_bucket_empty(
    documents: list[tuple[int, int]], num_buckets: int, seed: int
) -> None:
    tokens, categories = (np.array(column) for column in zip(*documents, strict=True))
    buckets = assign_buckets(tokens, categories, num_buckets, seed)
    assert buckets.min() >= 0
    assert buckets.max() < num_buckets
    for category in np.unique(categories):
        own = categories == category
        loads = [int(tokens[own & (buckets == bucket)].sum()) for bucket in range(num_buckets)]
        assert sum(loads) == tokens[own].sum()
        assert max(loads) - min(loads) <= tokens[own].max()
    assert len(set(buckets.tolist())) == min(num_buckets, len(documents))
    assert np.array_equal(buckets, assign_buckets(tokens, categories, num_buckets, seed))


def test_small_categories_even_out_what_large_ones_left() -> None:
    tokens, categories = np.array([70, 30, 10, 10, 10, 10]), np.array([0, 0, 1, 2, 3, 4])
    buckets = assign_buckets(tokens, categories, 2, seed=0)
    assert sorted(np.bincount(buckets, weights=tokens).tolist()) == [70, 70]


def test_the_seed_moves_documents_of_equal_length_only() -> None:
    equal, categories = np.full(40, 9), np.zeros(40, dtype=int)
    assert not np.array_equal(assign_buckets(equal, categories, 4, 0), assign_buckets(equal, categories, 4, 1))
    distinct = np.arange(1, 41)
    assert np.array_equal(assign_buckets(distinct, categories, 4, 0), assign_buckets(distinct, categories, 4, 1))


def test_twenty_thousand_categories_of_one_document_even_out() -> None:
    tokens = np.random.default_rng(0).integers(1, 1000, 20_000)
    buckets = assign_buckets(tokens, np.arange(20_000), 10, seed=0)
    loads = np.bincount(buckets, weights=tokens)
    assert loads.max() / loads.min() < 1.001


def test_the_longest_come_first() -> None:
    tokens, categories = np.array([1, 1, 1, 1, 4]), np.zeros(5, dtype=int)
    buckets = assign_buckets(tokens, categories, 2, seed=0)
    assert np.bincount(buckets, weights=tokens).tolist() == [4, 4]
