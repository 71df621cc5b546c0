"""What a step gave, read once the device has got there: figures for the log, and whether the run can go on."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from colossal_llama2.engine import ranks
from colossal_llama2.engine.late_numbers import LateNumbers
from colossal_llama2.engine.precision import UnreadOutcome
from colossal_llama2.train.checkpoints import Position
from colossal_llama2.train.row_watch import StepLosses
from colossal_llama2.train.run_log import StepMetrics
from colossal_llama2.train.stage import Figures
from colossal_llama2.train.stopping import NonFiniteError

if TYPE_CHECKING:
    from colossal_llama2.train.loop import Run

MAX_CONSECUTIVE_OVERFLOWS = 50


@dataclass(frozen=True)
class Totals:
    """Sums over all ranks for one step, known before it is computed."""

    losses: int
    learned_tokens: int
    tokens: int
    flops: float
    new_labels: int
    stop: bool
    over: bool
    written: bool


@dataclass(frozen=True)
class StepDone:
    """A step that was given to the device.

    Attributes:
        position: after it.
        totals: of its global batch.
        sums: [2 + figures] as the loop's `_accumulate` returns them; None where there was nothing to learn.
        outcome: of the optimizer.
        lr: learning rate of the step.
        data_seconds: what the host waited for its rows.
        row_indices: this rank's rows.
    """

    position: Position
    totals: Totals
    sums: torch.Tensor | None
    outcome: UnreadOutcome
    lr: float
    data_seconds: float
    row_indices: list[int]


@dataclass(frozen=True)
class _Figures:
    """What a global batch gave: the mean loss, the stage's figures, and the sum of its losses on new tokens."""

    loss: float = 0.0
    grad_norm: float = 0.0
    figures: Figures = field(default_factory=dict)
    new_sum: float = 0.0


class LateSteps:
    """The steps whose figures nobody has read yet: one at most, between two steps.

    A loss that is not finite is thus found when the next step has been queued already. The optimizer is guarded: from
    such a loss on it has updated nothing (`Session.guarded_step`), so what the message says of the weights holds.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._waiting: tuple[StepDone, LateNumbers] | None = None
        self._overflows = 0
        self._since = time.perf_counter()

    def add(self, step: StepDone) -> None:
        """Have a step's figures sent to the host, and read those of the step before; all ranks at the same point.

        Raises:
            NonFiniteError: that step's loss or gradients are no numbers.
        """
        sent = LateNumbers(_with_norm(step))
        before, self._waiting = self._waiting, (step, sent)
        if before is not None:
            self._read(*before)

    def settle(self) -> None:
        """Read what is not read yet, and let those who watch the run see it; all ranks at the same point.

        Raises:
            NonFiniteError: as for `add`.
        """
        before, self._waiting = self._waiting, None
        if before is not None:
            self._read(*before)
            self.restart_clock()

    def restart_clock(self) -> None:
        """Leave what was done until now out of the next step's time."""
        self._since = time.perf_counter()

    def _read(self, step: StepDone, sent: LateNumbers) -> None:
        numbers, there_at = sent.read()
        seconds, self._since = there_at - self._since, there_at
        found = self._figures(step, numbers)
        self._refuse_non_finite(found, step)
        self._overflows = self._overflows + 1 if step.outcome.skipped and step.totals.losses else 0
        self._refuse_broken_gradients(found, step)
        self._watch_and_log(self._metrics(step, found, seconds), step.totals, found)

    def _figures(self, step: StepDone, numbers: list[float]) -> _Figures:
        norm, *sums = numbers
        if not sums:
            return _Figures(grad_norm=norm)
        loss_sum, new_sum, *others = sums
        stage, count = self._run.stage, step.totals.losses
        figures = stage.figures(dict(zip(stage.figure_names, others, strict=True)), count)
        return _Figures(loss_sum / count, norm, figures, new_sum)

    def _refuse_non_finite(self, found: _Figures, step: StepDone) -> None:
        if math.isfinite(found.loss):
            return
        number = step.position.step
        rows = ", ".join(self._run.batches.corpus.describe_row(int(row)) for row in step.row_indices[:8])
        raise NonFiniteError(
            f"the loss of step {number} is {found.loss}; rows of rank {ranks.rank()}: {rows}; "
            f"the weights are those of step {number - 1}; {self._way_back()}"
        )

    def _refuse_broken_gradients(self, found: _Figures, step: StepDone) -> None:
        number = step.position.step
        if self._overflows >= MAX_CONSECUTIVE_OVERFLOWS:
            raise NonFiniteError(
                f"the gradients overflowed fp16 in {self._overflows} steps on end, until step {number}; "
                f"--mixed_precision bf16 has the range; {self._way_back()}"
            )
        if not step.outcome.skipped and not math.isfinite(found.grad_norm):
            guarded = isinstance(step.outcome.grad_norm, torch.Tensor)
            weights = f"the weights are those of step {number - 1}" if guarded else "they have spoiled the weights"
            raise NonFiniteError(f"the gradients of step {number} are not finite; {weights}; {self._way_back()}")

    def _way_back(self) -> str:
        """Say what to return to; every rank has found the same, so a checkpoint under way can be waited for."""
        self._run.checkpoints.complete()
        return self._run.checkpoints.way_back()

    def _metrics(self, step: StepDone, found: _Figures, seconds: float) -> StepMetrics:
        position, totals = step.position, step.totals
        return StepMetrics(
            step=position.step,
            epoch=position.epoch,
            tokens=position.tokens,
            learned_tokens=totals.learned_tokens,
            loss=found.loss,
            grad_norm=found.grad_norm if math.isfinite(found.grad_norm) else None,
            lr=step.lr,
            tokens_per_second=totals.tokens / seconds,
            mfu=totals.flops / seconds / self._run.peak_flops,
            memory=ranks.peak_memory(),
            seconds=seconds,
            data_seconds=step.data_seconds,
            skipped=step.outcome.skipped,
        )

    def _watch_and_log(self, metrics: StepMetrics, totals: Totals, found: _Figures) -> None:
        """Let those who watch the run see a step, and log it; what they measure is not part of the step's time."""
        run, report, learned = self._run, None, totals.learned_tokens
        if run.flatness is not None and learned:
            run.flatness.after_step(metrics.step, metrics.loss)
        if run.new_rows is not None:
            of_step = StepLosses(metrics.loss * learned, learned, found.new_sum, totals.new_labels, metrics.skipped)
            report = run.new_rows.after_step(metrics.step, of_step, last=metrics.step >= run.total_steps)
        figures = dict(found.figures)
        last = metrics.step >= run.total_steps or (run.flatness is not None and run.flatness.over)
        if run.evaluation is not None and run.evaluation.is_due(metrics.step, last):
            figures |= run.evaluation.measure()
        if run.log is None:
            return
        run.log.step(replace(metrics, figures=figures, new_rows={} if report is None else report.figures()))
        if report is not None:
            texts = {f"new_rows/{name}/neighbours": table for name, table in report.neighbours.items()}
            run.log.remark(metrics.step, report.line(), texts)


def _with_norm(step: StepDone) -> torch.Tensor:
    """Return the norm and behind it the sums: [1] or [3 + figures], float64, on the device if there are sums."""
    norm = step.outcome.grad_norm
    if step.sums is None:
        return torch.tensor([norm], dtype=torch.float64)
    # filled and not copied from the host, which would wait for the device
    known = norm.to(step.sums) if isinstance(norm, torch.Tensor) else torch.full_like(step.sums[0], norm)
    return torch.cat((known.reshape(1), step.sums))
