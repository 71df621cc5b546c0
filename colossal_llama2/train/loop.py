"""The training loop: one for every objective that turns a batch into a sum of losses."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch.profiler import record_function

from colossal_llama2.dataset.batches import Batch
from colossal_llama2.dataset.loader import GlobalBatches, StepBatch
from colossal_llama2.engine import ranks
from colossal_llama2.engine.late_numbers import add_over_ranks
from colossal_llama2.engine.precision import UnreadOutcome
from colossal_llama2.engine.session import Objective, Session
from colossal_llama2.train.checkpoints import Checkpoints, Position
from colossal_llama2.train.evaluation import Evaluation
from colossal_llama2.train.flatness import FlatnessWatch
from colossal_llama2.train.flops import StepFlops
from colossal_llama2.train.late_steps import LateSteps, StepDone, Totals
from colossal_llama2.train.profile import DATA_WAIT, StepProfiler
from colossal_llama2.train.row_watch import RowWatch
from colossal_llama2.train.run_log import RunLog
from colossal_llama2.train.stage import Measured, Stage
from colossal_llama2.train.stopping import StopRequest


@dataclass(frozen=True)
class Run:
    """Everything one run is made of.

    Attributes:
        session: the boosted model.
        stage: what is done.
        measured: its loss and figures, which `objective` is made of.
        batches: this rank's share of every global batch.
        objective: what the model is asked for.
        checkpoints: writes checkpoints and knows the last one.
        total_steps: steps of the whole run.
        num_epochs: epochs of the whole run.
        save_interval: steps between checkpoints, 0 for none.
        stop: asked between steps.
        log: the first rank's log, None elsewhere.
        flops: arithmetic of a step.
        peak_flops: of all ranks together, in FLOP/s.
        new_rows: watches the rows that the vocabulary was expanded by, if there are any that learn.
        flatness: watches the loss of a stage that trains the embeddings alone.
        evaluation: measures the model on what it never learns from, if there is any.
        reads_late: a step's figures are read while the next step is computed, so that the device never waits for it.
        profiler: records some steps, if it was asked for.
    """

    session: Session
    stage: Stage
    measured: Measured
    batches: GlobalBatches
    objective: Objective[Batch]
    checkpoints: Checkpoints
    total_steps: int
    num_epochs: int
    save_interval: int
    stop: StopRequest
    log: RunLog | None
    flops: StepFlops
    peak_flops: float
    new_rows: RowWatch | None = None
    flatness: FlatnessWatch | None = None
    evaluation: Evaluation | None = None
    reads_late: bool = False
    profiler: StepProfiler | None = None


def train(run: Run, start: Position) -> tuple[Position, bool]:
    """Train from a position to the end of the run, or until a stop is requested.

    Returns:
        The position reached, and True when the run is complete.

    Raises:
        NonFiniteError: the loss or the gradients stopped being numbers.
    """
    position, late = start, LateSteps(run)
    if position.step >= run.total_steps:  # a checkpoint of the last step: only the model was not written yet
        return position, True
    for epoch in range(start.epoch, run.num_epochs):
        position = replace(position, epoch=epoch)
        for batch, waited in _timed(run.batches.iterate(epoch, position.rows_consumed)):
            # ------------------------------------------------------------------------------------------------
            totals = _sum_totals(run, batch)
            if totals.stop or totals.over:
                late.settle()
                if totals.stop:
                    run.checkpoints.save_and_wait(position)
                return position, not totals.stop
            if totals.written:
                run.checkpoints.complete()
            lr = run.session.learning_rate
            sums = _accumulate(run, batch, totals.losses) if totals.losses else None
            outcome = _step(run.session, sums)
            position = _advance(position, batch, totals)
            # ------------------------------------------------------------------------------------------------
            late.add(StepDone(position, totals, sums, outcome, lr, waited, batch.row_indices))
            last = position.step >= run.total_steps
            saves = run.save_interval > 0 and position.step % run.save_interval == 0
            if saves or last or not run.reads_late or _is_looked_at(run, position.step):
                late.settle()
            if run.profiler is not None:
                run.profiler.after_step(position.step)
            if saves:
                run.checkpoints.save(position)
                late.restart_clock()
            if last:
                return position, True
        position = replace(position, epoch=epoch + 1, rows_consumed=0)
    late.settle()
    return position, True


def _timed(batches: Iterable[StepBatch]) -> Iterator[tuple[StepBatch, float]]:
    """Yield the batches and how long each was waited for, in seconds."""
    left = iter(batches)
    while True:
        began = time.perf_counter()
        with record_function(DATA_WAIT):
            batch = next(left, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - began


def _sum_totals(run: Run, batch: StepBatch) -> Totals:
    """Agree on token counts, on whether anybody is to stop or all have written a checkpoint, in one call.

    All of it is known on the host, and goes from host to host.
    """
    documents = [micro_batch.document_lengths for micro_batch in batch.micro_batches]
    tokens = sum(sum(lengths) for lengths in documents)
    flops = sum(run.flops.of(sum(lengths), lengths) for lengths in documents)
    counts = float(run.session.mesh.speaks_for_rows)  # the ranks of a model that is divided see the same rows
    new_labels = 0 if run.new_rows is None else run.new_rows.look(batch.micro_batches)
    losses, learned, tokens_sum, flops_sum, new_sum, stops, overs, written = ranks.sum_over_ranks(
        sum(run.stage.count(micro_batch) for micro_batch in batch.micro_batches) * counts,
        batch.num_learned * counts,
        tokens * counts,
        flops * counts,
        new_labels * counts,
        float(run.stop.requested),
        float(run.flatness is not None and run.flatness.over),
        float(run.checkpoints.written),
    )
    return Totals(
        losses=int(losses),
        learned_tokens=int(learned),
        tokens=int(tokens_sum),
        flops=flops_sum,
        new_labels=int(new_sum),
        stop=stops > 0,
        over=overs > 0,
        written=written == ranks.world_size(),
    )


def _accumulate(run: Run, batch: StepBatch, count: int) -> torch.Tensor:
    """Run forward and backward over the micro-batches of a global batch with so many losses.

    Returns:
        [2 + figures] float64 on the device, over all ranks: the losses' sum, that on new tokens, the stage's sums.
    """
    mesh = run.session.mesh
    weight = mesh.data_size / count  # gradients are averaged over data ranks: undo that, then divide
    run.stage.prepare(batch.micro_batches)
    total = run.session.learn(batch.micro_batches, run.objective, weight)
    new = torch.zeros_like(total) if run.new_rows is None else run.new_rows.take_new_loss()
    own = torch.cat((torch.stack((total, new)).double(), run.measured.take()))
    return add_over_ranks(own * float(mesh.speaks_for_loss))


def _step(session: Session, sums: torch.Tensor | None) -> UnreadOutcome:
    if sums is not None:
        return session.guarded_step(sums[0])
    session.skip_step()  # decay and momentum must not move weights on a batch that teaches nothing
    return UnreadOutcome(grad_norm=0.0, skipped=True)


def _advance(position: Position, batch: StepBatch, totals: Totals) -> Position:
    return replace(
        position,
        step=position.step + 1,
        rows_consumed=batch.rows_consumed_after,
        tokens=position.tokens + totals.tokens,
    )


def _is_looked_at(run: Run, step: int) -> bool:
    """Tell whether somebody looks at the weights after a step, who must find those of that step."""
    reports = run.new_rows is not None and run.new_rows.is_due(step)
    return reports or (run.evaluation is not None and run.evaluation.is_due(step, last=False))
