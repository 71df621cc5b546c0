"""The loss on a set that is never learned from, the same however ranks and micro-batches divide it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from colossal_llama2.dataset.loader import GlobalBatches
from colossal_llama2.engine import ranks
from colossal_llama2.engine.session import Session
from colossal_llama2.train.stage import Figures, Measured, Stage


@dataclass(frozen=True)
class Evaluation:
    """Evaluates a model while it is trained.

    Attributes:
        session: the boosted model.
        stage: whose loss is taken.
        batches: this rank's share of the set.
        interval: steps between evaluations, 0 for none but the last.
    """

    session: Session
    stage: Stage
    batches: GlobalBatches
    interval: int

    def is_due(self, step: int, last: bool) -> bool:
        """Tell whether to evaluate after a step."""
        return last or (self.interval > 0 and step % self.interval == 0)

    def measure(self) -> Figures:
        """Return the mean loss over the whole set as ``eval_loss``, and the stage's figures; a collective call.

        Weights, gradients, dropout's random numbers and the model's mode are afterwards what they were.
        """
        measured, mesh = Measured(self.stage), self.session.mesh
        loss, count = torch.zeros((), dtype=torch.float64, device=ranks.device()), 0
        self.stage.prepare(batch for step in self.batches.iterate(0) for batch in step.micro_batches)
        with self.session.measuring():
            for step in self.batches.iterate(0):
                loss += self.session.measure(step.micro_batches, measured.objective)
                count += sum(self.stage.count(batch) for batch in step.micro_batches)
        own = [value * mesh.speaks_for_loss for value in (float(loss), *measured.take().tolist())]
        counted, loss_sum, *sums = ranks.sum_over_ranks(count * float(mesh.speaks_for_rows), *own)
        if not counted:
            return {"eval_loss": None}
        figures = self.stage.figures(dict(zip(self.stage.figure_names, sums, strict=True)), int(counted))
        return {"eval_loss": loss_sum / counted, **{f"eval_{name}": value for name, value in figures.items()}}
