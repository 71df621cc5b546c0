"""Planning: every token of every document once, in order inside its pieces, with the labels the rule says."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset.planning import build_rows, gather, plan_buckets

PLACES = 100_000
DOCUMENT = st.integers(1, 60).flatmap(
    lambda tokens: st.tuples(st.just(tokens), st.integers(0, tokens), st.integers(0, 2))
)


@settings(deadline=None)
@given(
    documents=st.lists(DOCUMENT, min_size=1, max_size=20),
    num_buckets=st.integers(1, 5),
    max_length=st.integers(2, 24),
    per_shard=st.integers(1, 7),
)
def test_documents_come_back_from_the_rows(
    documents: list[tuple[int, int, int]],
    num_buckets: int,
    max_length: int,
    per_shard: int,
    numbered_documents: Callable[..., Any],
) -> None:
    with tempfile.TemporaryDirectory() as work:
        numbered = numbered_documents(Path(work, "encoded"), documents, per_shard)
        corpus = gather(numbered.shards)
        assert corpus.tokens.tolist() == numbered.tokens
        names = [corpus.category_names[number] for number in corpus.categories]
        assert names == [f"category {category}" for category in numbered.categories]
        jobs, buckets = plan_buckets(corpus, num_buckets, max_length, seed=3)
        assert [job.bucket for job in jobs] == list(range(num_buckets))
        pieces: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
        learned: list[int] = []
        for job in jobs:
            for row in build_rows(job):
                assert 0 < len(row.input_ids) <= max_length
                assert int(row.seq_lens.sum()) == len(row.input_ids) == len(row.labels)
                ends = np.cumsum(row.seq_lens)
                for begin, end in zip(ends - row.seq_lens, ends, strict=True):
                    ids, labels = row.input_ids[begin:end].tolist(), row.labels[begin:end].tolist()
                    pieces[ids[0] // PLACES].append((ids[0] % PLACES, ids))
                    assert buckets[ids[0] // PLACES] == job.bucket
                    assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
                    learned += [label for label in labels if label != -100]
        rebuilt = [token for document in sorted(pieces) for _, ids in sorted(pieces[document]) for token in ids]
        assert rebuilt == numbered.all_ids()
        assert sorted(learned) == sorted(numbered.learned(max_length))


def test_rows_are_shuffled_from_the_seed(tmp_path: Path, numbered_documents: Callable[..., Any]) -> None:
    corpus = gather(numbered_documents(tmp_path, [(8, 1, 0)] * 30).shards)

    def order(seed: int) -> list[int]:
        jobs, _ = plan_buckets(corpus, 2, 8, seed)
        return [int(row.input_ids[0]) for job in jobs for row in build_rows(job)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2))


def test_no_shards_are_an_empty_corpus() -> None:
    corpus = gather([])
    assert (len(corpus.tokens), len(corpus.characters), corpus.category_names) == (0, 0, [])
