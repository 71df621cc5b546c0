"""Batches hold every prompt once, and little padding."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.align.like_lengths import batches_of_like_lengths


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 8))
def test_batches_hold_every_prompt_once_and_little_padding(lengths: list[int], batch_size: int) -> None:
    batches = batches_of_like_lengths(lengths, batch_size)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        held = [lengths[place] for place in batch]
        assert len(batch) <= batch_size
        assert max(held) <= 1.25 * min(held) + 8
