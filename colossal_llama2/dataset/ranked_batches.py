"""Compared answers to tensors: those of several prompts packed into rows, each with its rank and its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from colossal_llama2.dataset.batches import Batch, collate
from colossal_llama2.dataset.parts import IGNORED, Row


@dataclass(frozen=True)
class RankedBatch(Batch):
    """A micro-batch of N answers, each a document with its prompt ahead of it.

    The answers stand in the order of `document_ends`, those of one prompt in one row or in several.

    Attributes:
        ranks: [N] int64, 0 the best; equal ranks are equally good.
        prompts: [N] int64, number of the prompt within the micro-batch.
        answer_lengths: [N] int64, learned tokens.
        num_compared: prompts of which one answer is better than another.
    """

    ranks: torch.Tensor
    prompts: torch.Tensor
    answer_lengths: torch.Tensor
    num_compared: int


@dataclass(frozen=True)
class _Answer:
    row: Row
    rank: int
    prompt: int


def collate_ranked(
    rows: Sequence[Row], pad_token_id: int = 0, length: int | None = None, max_length: int = 4096
) -> RankedBatch:
    """Pack the answers of several prompts into as few rows as they fit into, first come, first placed.

    Args:
        rows: of a preference set, one a prompt; a filler row has no answer.
        pad_token_id: stands at the padded positions.
        length: pad to this many tokens instead of the longest row.
        max_length: tokens a packed row may have; an answer is never cut, so one alone may not be longer.
    """
    room = max_length if length is None else length
    bins: list[list[_Answer]] = []
    used: list[int] = []
    for answer in (answer for number, row in enumerate(rows) for answer in _answers(row, number)):
        size = len(answer.row.input_ids)
        place = next((n for n, taken in enumerate(used) if taken + size <= room), len(bins))
        if place == len(bins):
            bins.append([])
            used.append(0)
        bins[place].append(answer)
        used[place] += size
    packed = [answer for members in bins for answer in members]
    batch = collate([_joined(members) for members in bins or [[]]], pad_token_id, length)
    return RankedBatch(
        **vars(batch),
        ranks=torch.tensor([answer.rank for answer in packed], dtype=torch.int64),
        prompts=torch.tensor([answer.prompt for answer in packed], dtype=torch.int64),
        answer_lengths=torch.tensor([int((a.row.labels[1:] != IGNORED).sum()) for a in packed], dtype=torch.int64),
        num_compared=sum(len(set(row.ranks.tolist())) > 1 for row in rows if row.ranks is not None),
    )


def _answers(row: Row, prompt: int) -> list[_Answer]:
    """Take a row apart into its answers."""
    ends = np.cumsum(row.seq_lens)
    answers = []
    for place, (begin, end) in enumerate(zip(ends - row.seq_lens, ends, strict=True)):
        assert row.ranks is not None
        own = Row(row.input_ids[begin:end], row.labels[begin:end], row.seq_lens[place : place + 1])
        answers.append(_Answer(own, int(row.ranks[place]), prompt))
    return answers


def _joined(members: Sequence[_Answer]) -> Row:
    empty = np.zeros(0, dtype=np.int32)
    columns = [[getattr(answer.row, name) for answer in members] for name in ("input_ids", "labels", "seq_lens")]
    return Row(*(np.concatenate([empty, *column]) for column in columns))
