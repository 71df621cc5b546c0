"""Pipeline schedules that are given a step's micro-batches one by one.

ColossalAI's schedules cut one large batch along its first dimension. Spliced rows come with the bounds of their
documents, which no cut along the batch can divide; and a step's micro-batches are there already, as many as it
accumulates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from colossal_llama2.engine import compat

compat.install()

from colossalai.pipeline.schedule import InterleavedSchedule, OneForwardOneBackwardSchedule  # noqa: E402


class MicroBatch(dict[str, Any]):
    """The model's inputs for one micro-batch, with the batch they were made of for the loss."""

    def __init__(self, inputs: dict[str, Any], batch: Any) -> None:
        super().__init__(inputs)
        self.batch = batch


class OneForwardOneBackward(OneForwardOneBackwardSchedule):
    """One forward, one backward, on whole micro-batches."""

    def load_batch(self, data_iter: Iterable[MicroBatch], device: torch.device | None = None) -> None:
        """Take a step's micro-batches."""
        self._waiting = list(data_iter)
        self.num_microbatches = len(self._waiting)

    def load_micro_batch(self) -> MicroBatch:
        """Return the next one; the forward passes come in order."""
        return self._waiting.pop(0)


class Interleaved(InterleavedSchedule):
    """Interleaved one forward, one backward (several chunks of layers a stage), on whole micro-batches."""

    def load_batch(self, data_iter: Iterable[MicroBatch], device: torch.device | None = None) -> None:
        """Take a step's micro-batches; every chunk of layers goes through all of them."""
        micro_batches = list(data_iter)
        self._waiting = [list(micro_batches) for _ in range(self.num_model_chunks)]
        self.num_microbatch = len(micro_batches)

    def load_micro_batch(self, model_chunk_id: int) -> MicroBatch:
        """Return the chunk's next one."""
        return self._waiting[model_chunk_id].pop(0)


def whole_micro_batches(stock: Any, stage_manager: Any) -> Any:
    """Return our form of the schedule that ``HybridParallelPlugin`` made for itself."""
    if isinstance(stock, InterleavedSchedule):
        # Overlapped sends and receives hang on gloo (tried with two stages of two chunks).
        return Interleaved(stage_manager, stock.num_model_chunks, num_microbatch=1, overlap_p2p=False)
    return OneForwardOneBackward(stage_manager, num_microbatches=1)
