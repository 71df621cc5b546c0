"""The training loop: one for every objective that turns a batch into a sum of losses."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from colossal_llama2.dataset.batches import Batch
from colossal_llama2.dataset.loader import GlobalBatches, StepBatch
from colossal_llama2.engine import ranks
from colossal_llama2.engine.session import CrossEntropySum, Objective, Session, StepOutcome
from colossal_llama2.train.checkpoints import Checkpoints, Position
from colossal_llama2.train.flops import StepFlops
from colossal_llama2.train.losses import next_token_loss_sum
from colossal_llama2.train.run_log import RunLog, StepMetrics
from colossal_llama2.train.stopping import NonFiniteError, StopRequest

MAX_CONSECUTIVE_OVERFLOWS = 50


@dataclass(frozen=True)
class Run:
    """Everything one run is made of.

    Attributes:
        session: the boosted model.
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
    """

    session: Session
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


@dataclass(frozen=True)
class _Totals:
    """Sums over all ranks for one step."""

    learned_tokens: int
    tokens: int
    flops: float
    stop: bool
    written: bool


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
            if totals.written:
                run.checkpoints.complete()
            loss = _accumulate(run, batch, totals.learned_tokens) if totals.learned_tokens else 0.0
            _refuse_non_finite(run, loss, position, batch)
            lr = run.session.learning_rate
            outcome = _step(run.session, totals)
            position = _advance(position, batch, totals)
            # ------------------------------------------------------------------------------------------------
            overflows = overflows + 1 if outcome.skipped and totals.learned_tokens else 0
            _refuse_broken_gradients(run, outcome, position, overflows)
            if run.log is not None:
                run.log.step(_metrics(run, position, totals, outcome, (loss, lr, began, waiting_since)))
            if run.save_interval and position.step % run.save_interval == 0:
                run.checkpoints.save(position)
            if position.step >= run.total_steps:
                return position, True
            waiting_since = time.perf_counter()
        position = replace(position, epoch=epoch + 1, rows_consumed=0)
    return position, True


def _pretraining_inputs(batch: Batch) -> dict[str, Any]:
    device = ranks.device()
    return {
        "input_ids": batch.input_ids.to(device, non_blocking=True),
        "position_ids": batch.position_ids.to(device, non_blocking=True),
        "cu_seq_lens_q": batch.cu_seq_lens,
        "cu_seq_lens_k": batch.cu_seq_lens,
        "max_length_q": batch.max_seq_len,
        "max_length_k": batch.max_seq_len,
        "use_cache": False,
    }


def _pretraining_loss_sum(output: Any, batch: Batch, cross_entropy_sum: CrossEntropySum) -> torch.Tensor:
    labels = batch.labels.to(ranks.device(), non_blocking=True)
    return next_token_loss_sum(output.logits, labels, cross_entropy_sum)


PRETRAINING = Objective(_pretraining_inputs, _pretraining_loss_sum)
"""Predict every learned token of spliced rows."""


def _sum_totals(run: Run, batch: StepBatch) -> _Totals:
    """Agree on token counts, on whether anybody was asked to stop or all have written a checkpoint, in one call."""
    documents = [micro_batch.document_lengths for micro_batch in batch.micro_batches]
    tokens = sum(sum(lengths) for lengths in documents)
    flops = sum(run.flops.of(sum(lengths), lengths) for lengths in documents)
    counts = float(run.session.mesh.speaks_for_rows)  # the ranks of a model that is divided see the same rows
    learned, tokens_sum, flops_sum, stops, written = ranks.sum_over_ranks(
        batch.num_learned * counts,
        tokens * counts,
        flops * counts,
        float(run.stop.requested),
        float(run.checkpoints.written),
    )
    return _Totals(
        learned_tokens=int(learned),
        tokens=int(tokens_sum),
        flops=flops_sum,
        stop=stops > 0,
        written=written == ranks.world_size(),
    )


def _accumulate(run: Run, batch: StepBatch, learned_tokens: int) -> float:
    """Run forward and backward over the micro-batches; return the mean loss over the global batch, in nats."""
    mesh = run.session.mesh
    weight = mesh.data_size / learned_tokens  # gradients are averaged over data ranks: undo that, then divide
    total = float(run.session.learn(batch.micro_batches, run.objective, weight))
    return ranks.sum_over_ranks(total * mesh.speaks_for_loss)[0] / learned_tokens


def _step(session: Session, totals: _Totals) -> StepOutcome:
    if totals.learned_tokens:
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
