"""What a report on new rows says: figures for the log, a line for a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from colossal_llama2.engine.token_rows import HEAD, INPUT
from colossal_llama2.train.row_health import RowHealth

UNSEEN_NAMES = {INPUT: "never_updated", HEAD: "never_a_label"}


@dataclass
class LossShares:
    """The loss on new tokens and on old ones since the last report: sums over all ranks, in nats, and labels."""

    steps: int = 0
    new_sum: float = 0.0
    new_labels: int = 0
    old_sum: float = 0.0
    old_labels: int = 0

    def figures(self) -> dict[str, float | int | None]:
        """Return the means; None where there was no label."""
        return {
            "steps": self.steps,
            "new_labels": self.new_labels,
            "loss_new": self.new_sum / self.new_labels if self.new_labels else None,
            "loss_old": self.old_sum / self.old_labels if self.old_labels else None,
        }


@dataclass(frozen=True)
class StepLosses:
    """What a step's losses were, over all ranks: sums in nats, and labels."""

    loss_sum: float
    labels: int
    new_sum: float
    new_labels: int
    skipped: bool


@dataclass(frozen=True)
class Report:
    """What is known of the new rows at a step.

    Attributes:
        losses: on new and old tokens since the last report.
        matrices: the health of each matrix; on the first rank alone.
        neighbours: of each matrix, a table in Markdown; on the first rank alone.
    """

    losses: dict[str, float | int | None]
    matrices: dict[str, RowHealth]
    neighbours: dict[str, str]

    def figures(self) -> dict[str, Any]:
        """Return what goes into a line of metrics.jsonl."""
        health = {name: health.figures(UNSEEN_NAMES[name]) for name, health in self.matrices.items()}
        return {**self.losses, **health}

    def line(self) -> str:
        """Say the most telling of it in a line."""
        health = self.matrices[INPUT]
        losses = [
            f"loss {value:.3f} on {which} tokens"
            for which in ("new", "old")
            if (value := self.losses[f"loss_{which}"]) is not None
        ]
        return ", ".join(
            [
                f"new rows: norm {health.norm.mean:.3g} (old {health.old_norm.mean:.3g})",
                f"moved by {health.distance.mean:.2%}",
                f"{health.unseen:.1%} never updated",
                *losses,
            ]
        )
