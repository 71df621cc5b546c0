"""Rows to tensors: padded to one length, positions counted anew in every document, bounds for attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from colossal_llama2.dataset.parts import IGNORED, Row


@dataclass(frozen=True)
class Batch:
    """A micro-batch of B rows padded to S tokens.

    Attributes:
        input_ids: [B, S] int64.
        labels: [B, S] int64, -100 where nothing is learned: padding, sources, the first token of every piece.
        position_ids: [B, S] int64, counted from 0 in every piece.
        cu_seq_lens: [N + 1] int32, bounds of the pieces in the flattened B * S; padding at a row's end is a piece too.
        max_seq_len: longest piece, in tokens.
        document_lengths: lengths of the pieces, padding not among them.
        num_learned: labels that are not -100.
        document_ends: [D] int64, where the last token of each of those pieces stands in the flattened B * S.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    cu_seq_lens: torch.Tensor
    max_seq_len: int
    document_lengths: list[int]
    num_learned: int
    document_ends: torch.Tensor


def filler_row() -> Row:
    """Make a row with nothing in it: completes the last global batch of an epoch and weighs nothing."""
    empty = np.zeros(0, dtype=np.int32)
    return Row(empty, empty, empty)


def collate(rows: Sequence[Row], pad_token_id: int = 0, length: int | None = None) -> Batch:
    """Stack rows into a batch.

    Args:
        rows: at least one row.
        pad_token_id: stands at the padded positions; no document attends to it and no label lies on it.
        length: pad to this many tokens instead of the longest row.
    """
    width = max([2, *(len(row.input_ids) for row in rows)]) if length is None else length
    assert all(len(row.input_ids) <= width for row in rows), "a row is longer than the batch"
    shape = (len(rows), width)
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    segments: list[int] = []
    documents: list[int] = []
    ends: list[int] = []
    for number, row in enumerate(rows):
        used = len(row.input_ids)
        starts = np.cumsum(row.seq_lens) - row.seq_lens
        input_ids[number, :used] = row.input_ids
        labels[number, :used] = row.labels
        labels[number, starts] = IGNORED  # what stands before it in the row belongs to another document
        position_ids[number, :used] = np.arange(used) - np.repeat(starts, row.seq_lens)
        position_ids[number, used:] = np.arange(width - used)
        documents += row.seq_lens.tolist()
        ends += (number * width + starts + row.seq_lens - 1).tolist()
        segments += row.seq_lens.tolist() + ([width - used] if used < width else [])
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(position_ids),
        cu_seq_lens=torch.tensor([0, *np.cumsum(segments).tolist()], dtype=torch.int32),
        max_seq_len=max(segments),
        document_lengths=documents,
        num_learned=int((labels != IGNORED).sum()),
        document_ends=torch.tensor(ends, dtype=torch.int64),
    )
