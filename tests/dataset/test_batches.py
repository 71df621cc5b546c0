"""Batches: positions start anew in every document, and nothing is learned where it must not be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.dataset.batches import Batch, collate, filler_row
from colossal_llama2.dataset.parts import Row

SEQ_LENS = st.lists(st.integers(1, 7), max_size=5)


def row_of(seq_lens: list[int], first: int) -> Row:
    """Row whose labels, wrongly, learn the first tokens of documents too."""
    ids = np.arange(first, first + sum(seq_lens), dtype=np.int32)
    return Row(ids, ids.copy(), np.array(seq_lens, dtype=np.int32))


def test_two_rows_written_by_hand() -> None:
    batch = collate([row_of([2, 3], 10), row_of([4], 20)], pad_token_id=9)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 14], [20, 21, 22, 23, 9]]
    assert batch.labels.tolist() == [[-100, 11, -100, 13, 14], [-100, 21, 22, 23, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]]
    assert batch.cu_seq_lens.tolist() == [0, 2, 5, 9, 10]
    assert (batch.max_seq_len, batch.document_lengths, batch.num_learned) == (4, [2, 3, 4], 6)
    assert batch.cu_seq_lens.dtype == torch.int32
    assert {tensor.dtype for tensor in (batch.input_ids, batch.labels, batch.position_ids)} == {torch.int64}


@given(lengths=st.lists(SEQ_LENS, min_size=1, max_size=4), more=st.none() | st.integers(0, 5))
def test_every_position_belongs_to_one_segment(lengths: list[list[int]], more: int | None) -> None:
    rows = [row_of(seq_lens, 100 * number) if seq_lens else filler_row() for number, seq_lens in enumerate(lengths, 1)]
    width = max(2, *(sum(seq_lens) for seq_lens in lengths)) if len(lengths) > 1 else max(2, sum(lengths[0]))
    batch = collate(rows, pad_token_id=5, length=None if more is None else width + more)
    width += more or 0
    assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == (len(rows), width)
    ids, labels, positions = (t.flatten().tolist() for t in (batch.input_ids, batch.labels, batch.position_ids))
    bounds = batch.cu_seq_lens.tolist()
    assert (bounds[0], bounds[-1]) == (0, len(ids))
    assert batch.max_seq_len == max(b - a for a, b in pairwise(bounds))
    real = iter([length for seq_lens in lengths for length in seq_lens])
    for begin, end in pairwise(bounds):
        assert begin < end
        assert begin // width == (end - 1) // width  # no segment runs over the end of a row
        assert positions[begin:end] == list(range(end - begin))
        assert labels[begin] == -100
        if ids[begin] == 5:
            assert set(labels[begin:end]) == {-100}
            assert set(ids[begin:end]) == {5}
        else:
            assert end - begin == next(real)
            assert (
                labels[begin + 1 : end] == ids[begin + 1 : end] == list(range(ids[begin] + 1, ids[begin] + end - begin))
            )
    assert next(real, None) is None
    assert batch.num_learned == sum(label != -100 for label in labels)
    assert batch.document_lengths == [length for seq_lens in lengths for length in seq_lens]


def test_a_batch_of_filler_weighs_nothing() -> None:
    batch: Batch = collate([filler_row(), filler_row()])
    assert batch.input_ids.shape == (2, 2)
    assert (batch.num_learned, batch.document_lengths) == (0, [])
    assert batch.cu_seq_lens.tolist() == [0, 2, 4]


def test_a_row_that_does_not_fit_is_never_cut() -> None:
    row = Row(*(np.array(values, dtype=np.int32) for values in ([1, 5, 2], [-100, 5, 2], [3])))
    with pytest.raises(AssertionError, match="longer than the batch"):
        collate([row], length=2)
