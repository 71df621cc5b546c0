"""Compared answers packed into rows: which token ends which answer, whatever shares its row."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from colossal_llama2.dataset.batches import filler_row
from colossal_llama2.dataset.parts import IGNORED, Row
from colossal_llama2.dataset.ranked_batches import RankedBatch, collate_ranked

PROMPT = 2


def row(first: int, lengths: list[int], ranks: list[int]) -> Row:
    """Answers of one prompt whose ids count on from `first`; two tokens of each are the prompt."""
    ids = np.arange(first, first + sum(lengths), dtype=np.int32)
    starts = np.cumsum(lengths) - lengths
    inside = np.concatenate([np.arange(length) for length in lengths])
    assert len(starts) == len(ranks)
    labels = np.where(inside < PROMPT, np.int32(IGNORED), ids).astype(np.int32)
    return Row(ids, labels, np.array(lengths, dtype=np.int32), np.array(ranks, dtype=np.int32))


def last_tokens(batch: RankedBatch) -> list[int]:
    return batch.input_ids.reshape(-1)[batch.document_ends].tolist()


def test_two_prompts_share_a_row_written_by_hand() -> None:
    batch = collate_ranked([row(10, [3, 4], [1, 0]), row(50, [3, 5], [0, 0])], max_length=16)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 14, 15, 16, 50, 51, 52, 53, 54, 55, 56, 57]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]]
    assert batch.cu_seq_lens.tolist() == [0, 3, 7, 10, 15]
    assert last_tokens(batch) == [12, 16, 52, 57]
    assert batch.ranks.tolist() == [1, 0, 0, 0]
    assert batch.prompts.tolist() == [0, 0, 1, 1]
    assert batch.answer_lengths.tolist() == [1, 2, 1, 3]
    assert batch.num_compared == 1, "of the second prompt no answer is better"


@pytest.mark.parametrize("max_length", [5, 8, 9, 64])
@pytest.mark.parametrize("length", [None, 20])
def test_every_answer_is_there_once_and_whole(max_length: int, length: int | None) -> None:
    draw = np.random.default_rng(0)
    rows = [row(100 * n, draw.integers(3, 6, size=1 + n % 4).tolist(), list(range(1 + n % 4))) for n in range(1, 9)]
    batch = collate_ranked(rows, length=length, max_length=max_length)
    room = max_length if length is None else length
    assert batch.input_ids.shape[1] <= room
    assert length is None or batch.input_ids.shape[1] == length
    ends = [end for each in rows for end in (each.input_ids[0] + np.cumsum(each.seq_lens) - 1).tolist()]
    assert sorted(last_tokens(batch)) == sorted(ends)
    for end, rank, prompt, answer in zip(
        last_tokens(batch), batch.ranks.tolist(), batch.prompts.tolist(), batch.answer_lengths.tolist(), strict=True
    ):
        own = rows[prompt]
        place = (own.input_ids[0] + np.cumsum(own.seq_lens) - 1).tolist().index(end)
        assert (rank, answer) == (place, own.seq_lens[place] - PROMPT)
    assert batch.num_compared == sum(len(each.seq_lens) > 1 for each in rows) > 0


def test_filler_rows_leave_a_batch_of_nothing() -> None:
    batch = partial(collate_ranked, max_length=8)([filler_row(), filler_row()])
    assert batch.input_ids.shape == (1, 2)
    assert len(batch.document_ends) == batch.num_compared == batch.num_learned == 0
    assert batch.ranks.dtype == torch.int64
