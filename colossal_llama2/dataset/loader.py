"""Each rank's share of every global batch, from any position, for any number of ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from colossal_llama2.dataset.batches import Batch, collate, filler_row
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.order import epoch_order
from colossal_llama2.dataset.parts import Row

Collate = Callable[[Sequence[Row], int, int | None], Batch]
"""Makes a micro-batch of rows, the padding token, and the length to pad to if it is fixed."""
_FILLER = -1
_PREFETCHED_STEPS = 2


@dataclass(frozen=True)
class LoaderSettings:
    """How a global batch is divided.

    Attributes:
        rank: number of this data-parallel rank.
        world_size: number of data-parallel ranks.
        micro_batch_size: rows a rank computes at a time.
        accumulation_steps: micro-batches of a rank in one step.
        seed: decides the order of rows.
        pad_token_id: stands at padded positions.
        length: pad every micro-batch to this many tokens instead of its longest row.
    """

    rank: int
    world_size: int
    micro_batch_size: int
    accumulation_steps: int
    seed: int
    pad_token_id: int = 0
    length: int | None = None


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of one global batch.

    Attributes:
        micro_batches: as many as there are accumulation steps, on every rank.
        row_indices: global numbers of the rows in them.
        rows_consumed_after: rows of the epoch that are done when this step is, over all ranks.
        num_learned: learned labels in this share.
    """

    micro_batches: list[Batch]
    row_indices: list[int]
    rows_consumed_after: int
    num_learned: int


class GlobalBatches:
    """Deals an epoch's rows to the ranks, step by step.

    Step g takes rows g * G to (g + 1) * G of the epoch's order, with G = ranks * micro-batch size * accumulation steps.
    Which rows a step sees depends on G alone, so a run can go on with other ranks from the number of rows it has done.
    The last global batch of an epoch may be smaller: filler rows that weigh nothing take the empty places.

    Args:
        corpus: the rows.
        settings: how they are divided.
        stack: makes a micro-batch of rows.
    """

    def __init__(self, corpus: PreparedCorpus, settings: LoaderSettings, stack: Collate = collate) -> None:
        self.corpus = corpus
        self.settings = settings
        self._stack = stack
        self.rows_per_step = settings.world_size * settings.micro_batch_size * settings.accumulation_steps
        self.steps_per_epoch = -(-corpus.num_rows // self.rows_per_step)

    def iterate(self, epoch: int, rows_consumed: int = 0) -> Iterator[StepBatch]:
        """Yield this rank's share of the steps of an epoch, from a position on; a thread reads ahead.

        Args:
            epoch: epoch, from 0.
            rows_consumed: rows of the epoch that are done already.
        """
        order = epoch_order(self.corpus.bucket_sizes, self.settings.seed, epoch)
        begins = iter(range(rows_consumed, len(order), self.rows_per_step))
        ahead: deque[Future[StepBatch]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="rows") as pool:
            try:
                while True:
                    while len(ahead) < _PREFETCHED_STEPS and (begin := next(begins, None)) is not None:
                        ahead.append(pool.submit(self._share, order, begin))
                    if not ahead:
                        return
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _share(self, order: np.ndarray, begin: int) -> StepBatch:
        settings = self.settings
        rows = order[begin : begin + self.rows_per_step]
        places = np.full(self.rows_per_step, _FILLER, dtype=np.int64)
        places[: len(rows)] = rows
        own = places.reshape(settings.accumulation_steps, settings.world_size, settings.micro_batch_size)[
            :, settings.rank
        ]
        micro_batches = [
            self._stack(
                [filler_row() if row == _FILLER else self.corpus.row(int(row)) for row in micro_batch],
                settings.pad_token_id,
                settings.length,
            )
            for micro_batch in own
        ]
        return StepBatch(
            micro_batches,
            [int(row) for row in own.ravel() if row != _FILLER],
            begin + len(rows),
            sum(batch.num_learned for batch in micro_batches),
        )
