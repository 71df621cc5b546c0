"""The training loop: one for every objective that turns a batch into a sum of losses."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import torch

from colossal_llama2.dataset.batches import Batch
from colossal_llama2.dataset.loader import GlobalBatches, StepBatch
from colossal_llama2.engine import ranks
from colossal_llama2.engine.session import Objective, Session, StepOutcome
from colossal_llama2.train.checkpoints import Checkpoints, Position
from colossal_llama2.train.evaluation import Evaluation
from colossal_llama2.train.flatness import FlatnessWatch
from colossal_llama2.train.flops import StepFlops
from colossal_llama2.train.row_watch import RowWatch, StepLosses
from colossal_llama2.train.run_log import RunLog, StepMetrics
from colossal_llama2.train.stage import Figures, Measured, Stage
from colossal_llama2.train.stopping import NonFiniteError, StopRequest

MAX_CONSECUTIVE_OVERFLOWS = 50


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


@dataclass(frozen=True)
class _Totals:
    """Sums over all ranks for one step."""

    losses: int
    learned_tokens: int
    tokens: int
    flops: float
    new_labels: int
    stop: bool
    over: bool
    written: bool


@dataclass(frozen=True)
class _Losses:
    """What a global batch gave: the mean loss, the stage's figures, and the sum of its losses on new tokens."""

    mean: float = 0.0
    figures: Figures = field(default_factory=dict)
    new_sum: float = 0.0


def train(run: Run, start: Position) -> tuple[Position, bool]:
    """Train from a position to the end of the run, or until a stop is requested.

    Returns:
        The position reached, and True when the run is complete.

    Raises:
        NonFiniteError: the loss or the gradients stopped being numbers.
    """
    position, overflows = start, 0
    if position.step >= run.total_steps:  # a checkpoint of the last step: only the model was not written yet
        return position, True
    for epoch in range(start.epoch, run.num_epochs):
        position = replace(position, epoch=epoch)
        waiting_since = time.perf_counter()
        for batch in run.batches.iterate(epoch, position.rows_consumed):
            # ------------------------------------------------------------------------------------------------
            began = time.perf_counter()
            totals = _sum_totals(run, batch)
            if totals.stop:
                run.checkpoints.save_and_wait(position)
                return position, False
            if totals.over:
                return position, True
            if totals.written:
                run.checkpoints.complete()
            losses = _accumulate(run, batch, totals.losses) if totals.losses else _Losses()
            _refuse_non_finite(run, losses.mean, position, batch)
            lr = run.session.learning_rate
            outcome = _step(run.session, totals)
            position = _advance(position, batch, totals)
            # ------------------------------------------------------------------------------------------------
            overflows = overflows + 1 if outcome.skipped and totals.losses else 0
            _refuse_broken_gradients(run, outcome, position, overflows)
            metrics = _metrics(run, position, totals, outcome, (losses.mean, lr, began, waiting_since))
            _watch_and_log(run, metrics, totals, losses)
            if run.save_interval and position.step % run.save_interval == 0:
                run.checkpoints.save(position)
            if position.step >= run.total_steps:
                return position, True
            waiting_since = time.perf_counter()
        position = replace(position, epoch=epoch + 1, rows_consumed=0)
    return position, True


def _sum_totals(run: Run, batch: StepBatch) -> _Totals:
    """Agree on token counts, on whether anybody is to stop or all have written a checkpoint, in one call."""
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
    return _Totals(
        losses=int(losses),
        learned_tokens=int(learned),
        tokens=int(tokens_sum),
        flops=flops_sum,
        new_labels=int(new_sum),
        stop=stops > 0,
        over=overs > 0,
        written=written == ranks.world_size(),
    )


def _accumulate(run: Run, batch: StepBatch, count: int) -> _Losses:
    """Run forward and backward over the micro-batches of a global batch with so many losses."""
    mesh = run.session.mesh
    weight = mesh.data_size / count  # gradients are averaged over data ranks: undo that, then divide
    run.stage.prepare(batch.micro_batches)
    total = run.session.learn(batch.micro_batches, run.objective, weight)
    new = torch.zeros_like(total) if run.new_rows is None else run.new_rows.take_new_loss()
    own = [*torch.stack((total, new)).tolist(), *run.measured.take()]
    loss_sum, new_sum, *sums = ranks.sum_over_ranks(*(value * mesh.speaks_for_loss for value in own))
    figures = run.stage.figures(dict(zip(run.stage.figure_names, sums, strict=True)), count)
    return _Losses(loss_sum / count, figures, new_sum)


def _watch_and_log(run: Run, metrics: StepMetrics, totals: _Totals, losses: _Losses) -> None:
    """Let those who watch the run see a step, and log it; what they measure is not part of the step's time."""
    report, learned = None, totals.learned_tokens
    if run.flatness is not None and learned:
        run.flatness.after_step(metrics.step, metrics.loss)
    if run.new_rows is not None:
        of_step = StepLosses(metrics.loss * learned, learned, losses.new_sum, totals.new_labels, metrics.skipped)
        report = run.new_rows.after_step(metrics.step, of_step, last=metrics.step >= run.total_steps)
    figures = dict(losses.figures)
    last = metrics.step >= run.total_steps or (run.flatness is not None and run.flatness.over)
    if run.evaluation is not None and run.evaluation.is_due(metrics.step, last):
        figures |= run.evaluation.measure()
    if run.log is None:
        return
    run.log.step(replace(metrics, figures=figures, new_rows={} if report is None else report.figures()))
    if report is not None:
        texts = {f"new_rows/{name}/neighbours": table for name, table in report.neighbours.items()}
        run.log.remark(metrics.step, report.line(), texts)


def _step(session: Session, totals: _Totals) -> StepOutcome:
    if totals.losses:
        return session.step()
    session.skip_step()  # decay and momentum must not move weights on a batch that teaches nothing
    return StepOutcome(grad_norm=0.0, skipped=True)


def _advance(position: Position, batch: StepBatch, totals: _Totals) -> Position:
    return replace(
        position,
        step=position.step + 1,
        rows_consumed=batch.rows_consumed_after,
        tokens=position.tokens + totals.tokens,
    )


def _refuse_non_finite(run: Run, loss: float, position: Position, batch: StepBatch) -> None:
    if math.isfinite(loss):
        return
    rows = ", ".join(run.batches.corpus.describe_row(int(row)) for row in batch.row_indices[:8])
    raise NonFiniteError(
        f"the loss of step {position.step + 1} is {loss}; rows of rank {ranks.rank()}: {rows}; "
        f"the weights are those of step {position.step}; {_way_back(run)}"
    )


def _refuse_broken_gradients(run: Run, outcome: StepOutcome, position: Position, overflows: int) -> None:
    if overflows >= MAX_CONSECUTIVE_OVERFLOWS:
        raise NonFiniteError(
            f"the gradients overflowed fp16 in {overflows} steps on end, until step {position.step}; "
            f"--mixed_precision bf16 has the range; {_way_back(run)}"
        )
    if not outcome.skipped and not math.isfinite(outcome.grad_norm):
        raise NonFiniteError(
            f"the gradients of step {position.step} are not finite and have spoiled the weights; {_way_back(run)}"
        )


def _way_back(run: Run) -> str:
    """Say what to return to; every rank has found the same, so a checkpoint under way can be waited for."""
    run.checkpoints.complete()
    return run.checkpoints.way_back()


def _metrics(
    run: Run, position: Position, totals: _Totals, outcome: StepOutcome, measured: tuple[float, float, float, float]
) -> StepMetrics:
    loss, lr, began, waiting_since = measured
    seconds = time.perf_counter() - waiting_since
    return StepMetrics(
        step=position.step,
        epoch=position.epoch,
        tokens=position.tokens,
        learned_tokens=totals.learned_tokens,
        loss=loss,
        grad_norm=outcome.grad_norm if math.isfinite(outcome.grad_norm) else None,
        lr=lr,
        tokens_per_second=totals.tokens / seconds,
        mfu=totals.flops / seconds / run.peak_flops,
        memory=ranks.peak_memory(),
        seconds=seconds,
        data_seconds=began - waiting_since,
        skipped=outcome.skipped,
    )
