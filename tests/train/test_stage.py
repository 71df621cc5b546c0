"""What a stage gives the loop: sums that are taken once, means by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from colossal_llama2.dataset.batches import Batch, collate, filler_row
from colossal_llama2.engine.session import CrossEntropies
from colossal_llama2.train.settings import DataOptions, ModelOptions, OutputOptions, StageSettings
from colossal_llama2.train.stage import LossSums, Measured, Stage

SETTINGS = StageSettings(ModelOptions(Path()), DataOptions((Path(),)), OutputOptions(Path()))


class Counting(Stage):
    """Its output is its loss; it counts micro-batches and adds up what it saw."""

    name = "counting"
    figure_names = ("calls", "seen")

    def loss_sums(self, output: Any, batch: Batch, cross_entropies: CrossEntropies) -> LossSums:
        """Return the output."""
        return LossSums(output, {"seen": output * 2, "calls": torch.ones(())})


def test_figures_are_added_up_in_their_order_until_they_are_taken() -> None:
    measured, batch = Measured(Counting(SETTINGS)), collate([filler_row()])
    for value in (1.0, 2.0):
        loss = measured.objective.loss_sum(torch.tensor(value, requires_grad=True), batch, lambda x, y: x)
        assert (loss.item(), loss.requires_grad) == (value, True)
    assert measured.take().tolist() == [2.0, 6.0]
    assert measured.take().tolist() == [0.0, 0.0]


def test_a_figure_is_the_mean_of_its_sum() -> None:
    assert Counting(SETTINGS).figures({"calls": 2.0, "seen": 6.0}, 4) == {"calls": 0.5, "seen": 1.5}
