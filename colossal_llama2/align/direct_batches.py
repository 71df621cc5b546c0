"""Micro-batches of the direct methods: compared answers, what the reference said of them, and mismatched pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from colossal_llama2.align.compared_set import ComparedSet, NumberedRow
from colossal_llama2.align.log_probs import SequenceLogProbs, sequence_sums, token_log_probs
from colossal_llama2.dataset.parts import Row
from colossal_llama2.dataset.ranked_batches import RankedBatch, collate_ranked
from colossal_llama2.engine.session import CrossEntropies

Sequences = Literal["answers", "mismatched"]
"""Sequences of a set: its answers, or each row's prompt with an answer to another one."""
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DirectBatch(RankedBatch):
    """A micro-batch of N answers.

    Attributes:
        numbers: [N] int64, of each sequence in its set: of the answer, or of the row whose prompt was mismatched.
        reference: [N] fp32, log-probabilities of the answers that were kept, in nats; NaN where none were.
        num_pairs: pairs of answers of which one is better.
        mismatched: prompts of these rows with answers to others, where they are wanted.
    """

    numbers: torch.Tensor
    reference: torch.Tensor
    num_pairs: int
    mismatched: DirectBatch | None = None


@dataclass(frozen=True)
class DirectCollate:
    """Makes micro-batches of the rows of one set.

    Attributes:
        data: the set.
        max_length: longest packed row, in tokens.
        kept: returns a number a sequence of the set, or None where none were kept.
        with_mismatched: mismatched pairs go along.
    """

    data: ComparedSet
    max_length: int
    kept: Callable[[ComparedSet, Sequences], Floats | None]
    with_mismatched: bool = False

    def __call__(self, rows: Sequence[Row], pad_token_id: int = 0, length: int | None = None) -> DirectBatch:
        """Pack the answers of several rows; see `collate_ranked`."""
        batch = self.of_answers(rows, pad_token_id, length)
        if not self.with_mismatched:
            return batch
        return replace(batch, mismatched=self.of_mismatched(rows, pad_token_id, length))

    def of_answers(self, rows: Sequence[Row], pad_token_id: int = 0, length: int | None = None) -> DirectBatch:
        """Pack the answers alone."""
        # packing changes their order: let it carry each answer's place in its row in the place of the rank
        placed = [replace(row, ranks=np.arange(len(row.seq_lens), dtype=np.int32)) for row in rows]
        batch = collate_ranked(placed, pad_token_id, length, self.max_length)
        numbers, order = [], []
        for prompt, place in zip(batch.prompts.tolist(), batch.ranks.tolist(), strict=True):
            row = rows[prompt]
            assert isinstance(row, NumberedRow)
            assert row.ranks is not None
            numbers.append(int(self.data.first_answers[row.number]) + place)
            order.append(int(row.ranks[place]))
        pairs = [int(self.data.num_pairs[row.number]) for row in rows if isinstance(row, NumberedRow)]
        compared = sum(number > 0 for number in pairs)
        ranked = replace(batch, ranks=torch.tensor(order, dtype=torch.int64), num_compared=compared)
        return self._with_reference(ranked, numbers, sum(pairs), "answers")

    def of_mismatched(self, rows: Sequence[Row], pad_token_id: int = 0, length: int | None = None) -> DirectBatch:
        """Pack the mismatched pairs of the rows alone."""
        found = [self.data.mismatched(row.number, self.max_length) for row in rows if isinstance(row, NumberedRow)]
        pairs = [row for row in found if row is not None]
        batch = collate_ranked(pairs, pad_token_id, length, self.max_length)
        numbers = [pairs[prompt].number for prompt in batch.prompts.tolist()]
        return self._with_reference(batch, numbers, 0, "mismatched")

    def _with_reference(self, batch: RankedBatch, numbers: list[int], pairs: int, what: Sequences) -> DirectBatch:
        kept = self.kept(self.data, what)
        said = np.full(len(numbers), np.nan, dtype=np.float32) if kept is None else kept[numbers]
        return DirectBatch(
            **vars(batch),
            numbers=torch.tensor(numbers, dtype=torch.int64),
            reference=torch.from_numpy(np.asarray(said, dtype=np.float32)),
            num_pairs=pairs,
        )


def answer_log_probs(logits: torch.Tensor, batch: RankedBatch, cross_entropies: CrossEntropies) -> SequenceLogProbs:
    """Add up the log-probabilities of every answer's tokens.

    Args:
        logits: [B, S, V], this rank's part of V under tensor parallelism.
        batch: of N answers.
        cross_entropies: the session's.

    Returns:
        Sums [N] in nats, fp32, with gradient, and lengths [N].
    """
    said = token_log_probs(logits, batch.labels.to(logits.device), cross_entropies)
    ends = batch.document_ends.to(logits.device)
    return sequence_sums(said.log_probs, torch.bucketize(said.positions, ends), len(ends))
