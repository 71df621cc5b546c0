"""Which rows get a gradient, against autograd itself; and an account that any number of ranks can continue."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset.batches import Batch, collate, filler_row
from colossal_llama2.dataset.parts import Row
from colossal_llama2.engine import ranks
from colossal_llama2.errors import InputError
from colossal_llama2.train.losses import next_token_loss_sum
from colossal_llama2.train.seen_rows import SeenRows, gets_gradient

VOCABULARY = 12
NEW = range(7, 12)


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    """Make a process group of this process alone."""
    ranks.launch(seed=0)
    yield
    ranks.close()


@st.composite
def rows(draw: st.DrawFn) -> Row:
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    ids = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=sum(lengths), max_size=sum(lengths)))
    learned = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    labels = [token if learn else -100 for token, learn in zip(ids, learned, strict=True)]
    return Row(np.array(ids, np.int32), np.array(labels, np.int32), np.array(lengths, np.int32))


def updated_by_autograd(batch: Batch) -> set[int]:
    """Let every document's later positions depend on its earlier ones, and see which rows of the embedding learn."""
    embedding = torch.nn.Parameter(torch.ones(VOCABULARY, 3))
    hidden = embedding[batch.input_ids.reshape(-1)]
    bounds = batch.cu_seq_lens.tolist()
    mixed = torch.cat([hidden[a:b].cumsum(0) for a, b in itertools.pairwise(bounds)])
    logits = (mixed @ torch.randn(3, VOCABULARY)).view(*batch.input_ids.shape, VOCABULARY)
    next_token_loss_sum(logits, batch.labels).backward()
    assert embedding.grad is not None
    return set(embedding.grad.abs().sum(1).nonzero().flatten().tolist())


@given(st.lists(rows(), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_rows_that_get_a_gradient_are_those_of_autograd(some: list[Row]) -> None:
    batch = collate([*some, filler_row()], pad_token_id=9)
    assert set(batch.input_ids.reshape(-1)[gets_gradient(batch)].tolist()) == updated_by_autograd(batch)
    seen = SeenRows(NEW)
    seen.add(seen.look([batch]))
    assert {NEW[place] for place in seen.inputs.nonzero().flatten().tolist()} == updated_by_autograd(batch) & set(NEW)
    labels = {int(label) for label in batch.labels.reshape(-1) if int(label) in NEW}
    assert {NEW[place] for place in seen.labels.nonzero().flatten().tolist()} == labels


def test_what_was_looked_at_and_not_learned_is_not_seen() -> None:
    batch = collate([Row(np.array([7, 8, 9], np.int32), np.array([-100, 8, 9], np.int32), np.array([3], np.int32))])
    seen = SeenRows(NEW)
    sighting = seen.look([batch, batch])
    assert sighting.inputs.tolist() == [0, 1, 0, 1]
    assert sighting.labels.tolist() == [1, 2, 1, 2]
    assert not seen.inputs.any()
    seen.add(sighting)
    assert seen.inputs.tolist() == [True, True, False, False, False]


@given(st.integers(1, 40), st.integers(0, 2**40 - 1), st.integers(0, 2**40 - 1))
@settings(max_examples=40, deadline=None)
def test_the_account_comes_back_bit_for_bit(count: int, inputs: int, labels: int) -> None:
    seen = SeenRows(range(100, 100 + count))
    seen.inputs = torch.tensor([bool(inputs >> place & 1) for place in range(count)])
    seen.labels = torch.tensor([bool(labels >> place & 1) for place in range(count)])
    again = SeenRows(seen.rows)
    again.load_state(json.loads(json.dumps(seen.as_state())))
    assert torch.equal(again.inputs, seen.inputs)
    assert torch.equal(again.labels, seen.labels)


def test_twenty_thousand_rows_are_a_few_kilobytes() -> None:
    assert len(json.dumps(SeenRows(range(32000, 52000)).as_state())) < 7000


@pytest.mark.parametrize("change", [{"version": 9}, {"first": 6}, {"count": 4}])
def test_another_account_is_refused(change: dict[str, int]) -> None:
    seen = SeenRows(NEW)
    with pytest.raises(InputError, match="account of new rows"):
        seen.load_state({**seen.as_state(), **change})
