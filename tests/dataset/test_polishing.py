"""Polishing: whole pieces move, rows never overflow, and there are as few as there can be where pieces are short."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.dataset.polishing import polish_rows
from colossal_llama2.dataset.splicing import Cutting, pack_best_fit, splice


@given(max_length=st.integers(4, 200), data=st.data())
def test_no_row_overflows_and_none_is_added(max_length: int, data: st.DataObject) -> None:
    lengths = np.array(data.draw(st.lists(st.integers(1, max_length), max_size=80)), dtype=np.int64)
    # any packing that is not too silly: next fit
    row_of, row, used = [], 0, 0
    for length in lengths.tolist():
        if used + length > max_length:
            row, used = row + 1, 0
        row_of.append(row)
        used += length
    before = np.array(row_of, dtype=np.int64)
    after = polish_rows(before, lengths, max_length)
    assert len(after) == len(lengths)
    if len(lengths):
        assert set(after.tolist()) == set(range(int(after.max()) + 1))  # numbered without a hole
        assert after.max() <= before.max()
        assert np.bincount(after, weights=lengths).max() <= max_length


def test_the_last_tenth_of_a_percent() -> None:
    plain, polished = 0, 0
    for seed in range(10):
        draw = np.random.default_rng(seed)
        lengths = np.concatenate([draw.integers(60, 140, 300), draw.integers(140, 4097, 200), np.full(100, 4096)])
        lengths = np.append(lengths, 4096 - (lengths.sum() + 4096 // 6) % 4096)  # a sixth of a row is left free
        fewest = -(-int(lengths.sum()) // 4096)
        plain += len(pack_best_fit(lengths, 4096)) - fewest
        polished += len(splice(lengths, "best_fit", Cutting(4096))[1]) - fewest
    assert plain >= 5  # else there was nothing to save
    assert polished <= 0.7 * plain
