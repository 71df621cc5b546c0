"""The health of new rows while they are trained: every interval, from all ranks, in a few figures and a line."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from colossal_llama2 import cli
from colossal_llama2.dataset.batches import Batch
from colossal_llama2.engine import ranks
from colossal_llama2.engine.session import CrossEntropies, Objective, Session
from colossal_llama2.engine.token_rows import (
    HEAD,
    INPUT,
    Run,
    TokenMatrix,
    comparison,
    over_ranks,
    products,
    squares,
    token_matrices,
    whole_rows,
)
from colossal_llama2.errors import InputError
from colossal_llama2.model.start_rows import map_token_matrices
from colossal_llama2.train.losses import next_token_losses
from colossal_llama2.train.row_health import RowHealth, nearest, row_health
from colossal_llama2.train.row_report import LossShares, Report, StepLosses
from colossal_llama2.train.seen_rows import SeenRows, Sighting

DEFAULT_INTERVAL = 50
SHOWN_ROWS, SHOWN_NEIGHBOURS, NAMED_RUNAWAYS = 8, 3, 5
_VERSION = 1


class RowWatch:
    """Watches the new rows of a run. Every method but `look` is called by all ranks at the same point.

    Args:
        session: the boosted model.
        rows: ids of the new tokens.
        interval: steps between reports.
        start_dir: model folder with the rows as they were at the start.
        spelled: shows a token's text.
    """

    def __init__(
        self, session: Session, rows: range, interval: int, start_dir: Path, spelled: Callable[[int], str]
    ) -> None:
        self.rows, self.interval = rows, interval
        self.seen = SeenRows(rows)
        self._losses = LossShares()
        self._new_loss = torch.zeros((), device=ranks.device())
        self._sightings: deque[Sighting] = deque()  # of the steps that `after_step` has not seen yet
        self._spelled = spelled
        self._named: set[tuple[str, int]] = set()
        self._matrices = token_matrices(session)
        stored = dict(zip((INPUT, HEAD), map_token_matrices(start_dir), strict=True))
        self._widths = {matrix.name: stored[matrix.name].shape[1] for matrix in self._matrices}
        # kept, and not read again each time: a run must not end over a log because a folder has gone
        self._starts = {matrix.name: self._start_of(matrix, stored[matrix.name]) for matrix in self._matrices}
        self._refuse_gaps()

    def objective(self, inputs: Callable[[Batch], dict[str, Any]]) -> Objective[Batch]:
        """Return next-token prediction that takes the losses on new tokens apart on its way."""
        return Objective(inputs, self._loss_sum)

    def look(self, micro_batches: list[Batch]) -> int:
        """Find the new tokens of this rank's share of a step; return how many of its labels are new."""
        self._sightings.append(self.seen.look(micro_batches))
        return len(self._sightings[-1].labels)

    def is_due(self, step: int) -> bool:
        """Tell whether a report follows a step, the last one's aside; it is about the weights as they are then."""
        return step % self.interval == 0

    def take_new_loss(self) -> torch.Tensor:
        """Return the sum of this rank's losses on new tokens since the last call, a scalar on the device."""
        taken, self._new_loss = self._new_loss, torch.zeros_like(self._new_loss)
        return taken

    def after_step(self, step: int, losses: StepLosses, last: bool) -> Report | None:
        """Take note of a step; report when the interval is over, or the run."""
        sighting = self._sightings.popleft()
        if not losses.skipped:
            self.seen.add(sighting)
        shares = self._losses
        shares.steps += 1
        shares.new_sum += losses.new_sum
        shares.new_labels += losses.new_labels
        shares.old_sum += losses.loss_sum - losses.new_sum
        shares.old_labels += losses.labels - losses.new_labels
        return self._report() if last or self.is_due(step) else None

    def as_state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold for the figures to go on as if nothing had happened; a collective call."""
        return {"version": _VERSION, "seen": self.seen.as_state(), "losses": vars(self._losses).copy()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put `as_state` back, on any number of ranks.

        Raises:
            InputError: it is of another version or of other tokens.
        """
        if state.get("version") != _VERSION:
            raise InputError("an account of new rows of another version", remedy="pass --new_rows_interval 0")
        self.seen.load_state(state["seen"])
        self._losses = LossShares(**state["losses"])

    def _loss_sum(self, output: Any, batch: Batch, cross_entropies: CrossEntropies) -> torch.Tensor:
        found = next_token_losses(output.logits, batch.labels, cross_entropies)
        new = (found.targets >= self.rows.start) & (found.targets < self.rows.stop)
        self._new_loss += found.losses.where(new, 0.0).sum()
        return found.loss_sum

    def _report(self) -> Report:
        self.seen.over_ranks()
        losses, self._losses = self._losses.figures(), LossShares()
        matrices: dict[str, RowHealth] = {}
        tables: dict[str, str] = {}
        for matrix in self._matrices:
            measured = self._measure(matrix)
            if ranks.is_first():
                matrices[matrix.name], tables[matrix.name] = measured.health, self._table(measured)
        for name, health in matrices.items():
            self._name_runaways(name, health)
        return Report(losses, matrices, tables)

    def _measure(self, matrix: TokenMatrix) -> _Measured:
        old, run = range(self.rows.start), matrix.run(self._widths[matrix.name])
        numbers = len(self.rows) * 4
        sums = over_ranks(
            torch.cat((comparison(run, self._starts[matrix.name], self.rows).flatten(), squares(run, old)))
        )
        compared, old_squares = sums[:numbers].view(-1, 4), sums[numbers:]
        shown = _spread_over(self.rows, SHOWN_ROWS)
        found = over_ranks(products(run, old, whole_rows(run, shown)))
        seen = self.seen.inputs if matrix.name == INPUT else self.seen.labels
        if len(self._matrices) == 1:  # tied: a label teaches the row as well
            seen = seen | self.seen.labels
        norms = compared[[number - self.rows.start for number in shown], 0].sqrt()
        neighbours = nearest(found, norms, old_squares.sqrt(), SHOWN_NEIGHBOURS)
        return _Measured(row_health(compared, old_squares, seen), dict(zip(shown, neighbours, strict=True)))

    def _table(self, measured: _Measured) -> str:
        lines = ["| new piece | nearest old pieces (cosine) |", "| --- | --- |"]
        for number, neighbours in measured.neighbours.items():
            named = ", ".join(f"{self._shown(old)} {cosine:.2f}" for old, cosine in neighbours)
            lines.append(f"| {self._shown(number)} | {named} |")
        return "\n".join(lines)

    def _name_runaways(self, name: str, health: RowHealth) -> None:
        """Name the rows whose norm runs away, each once."""
        fresh = [entry for entry in health.runaways if (name, entry[0]) not in self._named]
        self._named |= {(name, number) for number, _, _ in fresh}
        if fresh:
            named = "; ".join(
                f"{self._spelled(self.rows.start + number)!r} {start:.3g} -> {norm:.3g}"
                for number, start, norm in fresh[:NAMED_RUNAWAYS]
            )
            cli.warn(
                f"the norm of {len(fresh)} new {name} rows runs away (old rows {health.old_norm.mean:.3g} on average, "
                f"{health.old_norm.most:.3g} at most): {named}{'; ...' if len(fresh) > NAMED_RUNAWAYS else ''}; "
                "a lower --lr or a longer warm-up holds them"
            )

    def _shown(self, token: int) -> str:
        """Write a token's text so that it cannot break a table."""
        return "`" + repr(self._spelled(token)).replace("|", "\\|").replace("`", "'") + "`"

    def _start_of(self, matrix: TokenMatrix, stored: torch.Tensor) -> Run:
        """Copy this rank's part of the new rows as they were, in the dtype they are stored in, to host memory."""
        width = stored.shape[1]
        part = matrix.run(width).of_rows(self.rows)
        end = part.offset + len(part.values)
        first = part.offset // width
        rows = stored[first : -(-end // width)].reshape(-1)
        return Run(part.offset, rows[part.offset - first * width : end - first * width].clone(), width)

    def _refuse_gaps(self) -> None:
        """Make sure that the ranks' runs are the matrix: now, and not by figures that are wrong.

        Raises:
            RuntimeError: on every rank, when a number lies nowhere or twice.
        """
        for matrix in self._matrices:
            width = self._widths[matrix.name]
            held = matrix.run(width)
            ones = Run(held.offset, torch.ones(1).expand(len(held.values)), width)
            counts = over_ranks(squares(ones, range(self.rows.stop)))
            if not bool((counts == width).all()):
                raise RuntimeError(f"the ranks together do not hold every number of the {matrix.name} rows once")


@dataclass(frozen=True)
class _Measured:
    health: RowHealth
    neighbours: dict[int, list[tuple[int, float]]] = field(repr=False)


def _spread_over(rows: range, count: int) -> list[int]:
    """Choose a few rows, evenly spread, always the same: what becomes of them can be followed."""
    return sorted({rows[len(rows) * place // count] for place in range(count)})
