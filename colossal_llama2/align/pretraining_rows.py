"""Rows of a prepared corpus beside PPO's updates, without end and from any position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from colossal_llama2.dataset.batches import Batch
from colossal_llama2.dataset.loader import GlobalBatches, StepBatch


class PretrainingRows:
    """Deals the rows of a corpus to updates, epoch after epoch.

    Args:
        batches: this rank's share of every global batch.
    """

    def __init__(self, batches: GlobalBatches) -> None:
        self._batches = batches
        self._epoch, self._consumed = 0, 0
        self._iterator: Iterator[StepBatch] | None = None

    def next_rows(self) -> list[Batch]:
        """Return this rank's micro-batches of the next global batch."""
        if self._consumed >= self._batches.corpus.num_rows:
            self._epoch, self._consumed, self._iterator = self._epoch + 1, 0, None
        if self._iterator is None:
            self._iterator = self._batches.iterate(self._epoch, self._consumed)
        batch = next(self._iterator)
        self._consumed = batch.rows_consumed_after
        return batch.micro_batches

    def as_state(self) -> dict[str, int]:
        """Return what a checkpoint keeps: the position, valid for any number of ranks."""
        return {"epoch": self._epoch, "rows_consumed": self._consumed}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on from what a checkpoint kept."""
        self._epoch, self._consumed, self._iterator = int(state["epoch"]), int(state["rows_consumed"]), None
