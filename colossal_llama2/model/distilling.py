"""Token distillation: new rows that leave the model in the state in which the old tokens of the same text left it.

The teacher reads a snippet in old tokens, the student the same snippet in new ones; both are the base model. A new row
is moved until the student's hidden states, at every token from the first new one on, are the teacher's at the last old
token of the same piece (mean squared error; Dobler, Elliott, de Melo, "Token Distillation", arXiv 2505.20133).
Nothing but the new rows is ever moved. Rows of an output head that is not tied are learned beside it, from the same
snippets, by next-token cross-entropy: no state of the teacher stands for a row that states are only compared with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from colossal_llama2.model.frozen_model import FrozenModel
from colossal_llama2.model.new_rows import spread
from colossal_llama2.model.row_adam import RowAdam
from colossal_llama2.model.snippets import Ids, OldTokens, Snippets, in_batches

_WARMUP_SHARE = 0.05


@dataclass(frozen=True)
class Plan:
    """How rows are distilled.

    Attributes:
        steps: optimizer steps.
        seconds: end after this long even if steps are left, or None.
        batch_size: snippets a step.
        lr: step size of Adam at its highest, as a share of the spread of the base's rows.
        layer: whose hidden states are matched, None for the last one's behind its norm.
        seed: decides the order of the snippets.
    """

    steps: int
    seconds: float | None
    batch_size: int
    lr: float
    layer: int | None
    seed: int


@dataclass(frozen=True)
class NewRows:
    """The rows of new tokens in both matrices, each [N, D] in fp32 on the model's device, and which of them learn.

    Attributes:
        inputs: of the input embedding.
        outputs: of the output head; the same tensor where the two are tied.
        bias: of the output head's bias, [N], if it has one; never learned.
        learn_inputs: whether the first are distilled.
        learn_outputs: whether the second are learned.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    bias: torch.Tensor | None
    learn_inputs: bool
    learn_outputs: bool


@dataclass(frozen=True)
class StepReport:
    """How a step went.

    Attributes:
        step: steps done.
        share: of the whole distillation, by steps or by time.
        distance: squared error of the student's states over the variance of the teacher's; None where no input row is
            learned.
        loss: next-token cross-entropy in nats a token; None where no output row is learned.
    """

    step: int
    share: float
    distance: float | None
    loss: float | None


@dataclass(frozen=True)
class Batch:
    """Snippets side by side, filled up behind, where a causal model does not look.

    Attributes:
        new: [B, S] int64, bos and the snippet in new tokens.
        old: [B, L] int64, bos and the snippet in old tokens.
        places: [B, S] int64, where each new token's last old one stands.
        counted: [B, S] bool, positions from the first new token on.
        inside: [B, S] bool, positions that are not filling.
    """

    new: torch.Tensor
    old: torch.Tensor
    places: torch.Tensor
    counted: torch.Tensor
    inside: torch.Tensor


class Distillation:
    """One distillation: the rows, their optimizers, and what of the texts they have seen."""

    def __init__(self, model: FrozenModel, num_base: int, rows: NewRows, plan: Plan) -> None:
        """Begin.

        Args:
            model: teacher and student.
            num_base: tokens of the base.
            rows: where the rows start; those that learn are moved in place.
            plan: how.
        """
        self._model, self._num_base, self._rows, self._plan = model, num_base, rows, plan
        self._input_lr = plan.lr * spread(model.input_rows[:num_base].cpu())
        self._output_lr = plan.lr * spread(model.output_rows[:num_base].cpu())
        self._input_adam, self._output_adam = RowAdam(rows.inputs), RowAdam(rows.outputs)
        self.met = torch.zeros(len(rows.inputs), dtype=torch.bool, device=model.device)

    def run(self, snippets: Snippets, old: OldTokens, bos: int) -> Iterator[StepReport]:
        """Go through the snippets, shuffled, again and again until the steps or the time is spent."""
        started, plan = time.monotonic(), self._plan
        for step, some in enumerate(in_batches(snippets, plan.steps, plan.batch_size, plan.seed), 1):
            share = (step - 1) / plan.steps
            if plan.seconds is not None:
                share = max(share, (time.monotonic() - started) / plan.seconds)
            if share >= 1:
                return
            distance, loss = self._step(lay_out(some, old, self._num_base, bos), _schedule(share))
            yield StepReport(step, share, distance, loss)

    def _step(self, batch: Batch, multiplier: float) -> tuple[float | None, float | None]:
        batch = Batch(*(tensor.to(self._model.device) for tensor in vars(batch).values()))
        which = torch.unique(batch.new[batch.new >= self._num_base]) - self._num_base
        self.met[which] = True
        leaf = self._rows.inputs[which].requires_grad_(self._rows.learn_inputs)
        student = self._model.states(self._renumbered(batch.new, which), self._plan.layer, self._num_base, leaf)
        distance = loss = None
        if self._rows.learn_inputs:
            teacher = self._teacher_states(batch)
            error = (student.matched.float()[batch.counted] - teacher).square().mean()
            (gradient,) = torch.autograd.grad(error, leaf)
            self._input_adam.step(which, gradient, multiplier * self._input_lr)
            distance = float(error.detach() / teacher.var(correction=0))
        if self._rows.learn_outputs:
            loss = self._learn_outputs(student.last.detach(), batch, multiplier)
        return distance, loss

    @torch.no_grad()
    def _teacher_states(self, batch: Batch) -> torch.Tensor:
        """Read the old tokens, and return the states to be matched: [positions counted, D], in fp32."""
        states = self._model.states(batch.old, self._plan.layer).matched
        return states.gather(1, batch.places[..., None].expand(-1, -1, states.shape[-1]))[batch.counted].float()

    def _learn_outputs(self, last: torch.Tensor, batch: Batch, multiplier: float) -> float:
        """Move the output rows of every token met so far; those not met would only be pushed out of the way."""
        rows = self._rows.outputs.detach().requires_grad_()
        bias = self._model.output_bias
        scored = batch.inside[:, 1:]
        states, targets = last[:, :-1][scored], batch.new[:, 1:][scored]
        old_bias = None if bias is None else bias[: self._num_base]
        logits = torch.cat(
            [
                self._model.logits(states, self._model.output_rows[: self._num_base], old_bias),
                self._model.logits(states, rows, self._rows.bias),
            ],
            dim=-1,
        )
        loss = functional.cross_entropy(logits, targets)
        (gradient,) = torch.autograd.grad(loss, rows)
        which = self.met.nonzero()[:, 0]
        self._output_adam.step(which, gradient[which], multiplier * self._output_lr)
        return float(loss.detach())

    def _renumbered(self, ids: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Let new tokens of a batch stand for their places among `which`."""
        new = ids >= self._num_base
        places = torch.searchsorted(which, (ids - self._num_base).clamp(min=0)).clamp(max=len(which) - 1)
        return torch.where(new, places + self._num_base, ids)


def lay_out(snippets: list[Ids], old: OldTokens, num_base: int, bos: int) -> Batch:
    """Put snippets side by side, each behind a bos, in new tokens and in old ones."""
    written = [old.of(row) for row in snippets]
    height = len(snippets)
    new = np.full((height, 1 + max(map(len, snippets))), bos, dtype=np.int64)
    olds = np.full((height, 1 + max(len(ids) for ids, _ in written)), bos, dtype=np.int64)
    places, inside = np.zeros_like(new), np.zeros(new.shape, dtype=np.bool_)
    for index, (row, (ids, ends)) in enumerate(zip(snippets, written, strict=True)):
        new[index, 1 : len(row) + 1] = row
        olds[index, 1 : len(ids) + 1] = ids
        places[index, 1 : len(row) + 1] = ends + 1
        inside[index, : len(row) + 1] = True
    counted = inside & (np.maximum.accumulate(new >= num_base, axis=1))
    return Batch(*(torch.from_numpy(array) for array in (new, olds, places, counted, inside)))


def _schedule(share: float) -> float:
    """Rise to 1 over the first twentieth, then fall to 0 in a straight line."""
    return min((share + 1e-3) / _WARMUP_SHARE, (1 - share) / (1 - _WARMUP_SHARE), 1.0)
