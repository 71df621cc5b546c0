"""From Arrow to the model's input: no label, position or segment crosses from one document into another."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset.batches import Batch
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.loader import GlobalBatches, LoaderSettings

PLACES, PADDING = 100_000, 99_999  # no document here is 99,999 tokens long
DOCUMENT = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, 1)))


def look_at(batch: Batch, max_length: int) -> tuple[list[int], list[int]]:
    """Check every position of a micro-batch; return the tokens that stand in it and those that are learned."""
    width = batch.input_ids.shape[1]
    ids, labels, positions = (t.flatten().tolist() for t in (batch.input_ids, batch.labels, batch.position_ids))
    bounds = batch.cu_seq_lens.tolist()
    segment_of = [number for number, (a, b) in enumerate(pairwise(bounds)) for _ in range(a, b)]
    assert len(segment_of) == len(ids)
    seen, learned = [], []
    for place, (token, label, position) in enumerate(zip(ids, labels, positions, strict=True)):
        goes_on = place > 0 and segment_of[place] == segment_of[place - 1]
        assert position == (positions[place - 1] + 1 if goes_on else 0)
        if token == PADDING:
            assert label == -100
            assert not goes_on or ids[place - 1] == PADDING
            continue
        seen.append(token)
        assert goes_on == (token % PLACES % max_length > 0)  # a segment is a piece, from its first token to its last
        assert not goes_on or (ids[place - 1] == token - 1 and place % width > 0)
        if label != -100:
            assert label == token  # predicted from the token before it, which is of the same document and in sight
            assert goes_on
            learned.append(label)
    return seen, learned


@settings(deadline=None, max_examples=40)
@given(
    documents=st.lists(DOCUMENT, min_size=4, max_size=20),
    num_buckets=st.integers(1, 4),
    max_length=st.integers(2, 20),
    division=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)
def test_no_document_sees_another(
    documents: list[tuple[int, int, int]],
    num_buckets: int,
    max_length: int,
    division: tuple[int, int, int],
    numbered_corpus: Callable[..., Any],
) -> None:
    world_size, micro, accumulation = division
    with tempfile.TemporaryDirectory() as work:
        folder, numbered = numbered_corpus(Path(work), documents, num_buckets, max_length)
        corpus = PreparedCorpus.open([folder])
        seen: list[int] = []
        learned: list[int] = []
        for rank in range(world_size):
            settings = LoaderSettings(rank, world_size, micro, accumulation, seed=1, pad_token_id=PADDING)
            for step in GlobalBatches(corpus, settings).iterate(epoch=0):
                for batch in step.micro_batches:
                    tokens, labels = look_at(batch, max_length)
                    assert batch.num_learned == len(labels)
                    seen += tokens
                    learned += labels
    assert sorted(seen) == numbered.all_ids()
    assert sorted(learned) == sorted(numbered.learned(max_length))
