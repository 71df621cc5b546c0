"""Has a stage stopped paying? A rule on the loss curve, and the curve in as few points as the rule needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama2 import cli
from colossal_llama2.errors import InputError

LEAST_BLOCKS, MOST_BLOCKS = 80, 160
WINDOW = 4  # the last quarter of the steps
FLAT_SHARE = 0.02
"""Of the whole fall: a window that brought less went at less than a twelfth of the average pace."""
NO_FALL_SHARE = 0.005
"""Of the loss: what a curve must fall in all to have begun to."""
_LEAST_STEPS_WITHOUT_FALL = 200
_SURE = 2.6  # standard errors: one chance in two hundred, for each side of the doubt
_VERSION = 1


@dataclass(frozen=True)
class Flatness:
    """Why a curve is called flat.

    Attributes:
        steps: steps seen.
        window: steps of the last quarter, or all where the loss never fell.
        fall: what the loss fell in the window, in nats; below 0 where it rose.
        at_most: what it fell at most, given the noise.
        total: what it fell from the first steps to the window, in nats.
    """

    steps: int
    window: int
    fall: float
    at_most: float
    total: float

    def __str__(self) -> str:
        way = "rose" if self.fall < 0 else "fell"
        figures = f"the loss {way} by {abs(self.fall):.4f} nats (fell by {self.at_most:.4f} at most)"
        if self.window == self.steps:
            return f"in {self.steps} steps {figures}"
        return f"in the last {self.window} of {self.steps} steps {figures}, of {self.total:.4f} in all"


@dataclass
class LossCurve:
    """A loss curve in at most 160 means of equally many steps; when they are full, each two become one.

    So the curve of any length is small enough for a checkpoint, and the means of many steps are nearly independent of
    one another, which a test on the losses of single steps would have to assume.

    Attributes:
        size: steps of a mean.
        means: in nats.
        open_sum: losses of the steps after the last mean, added up.
        open_steps: their number.
        flat_at: step at which the curve was found flat, if it was.
    """

    size: int = 1
    means: list[float] = field(default_factory=list)
    open_sum: float = 0.0
    open_steps: int = 0
    flat_at: int | None = None

    def add(self, loss: float) -> bool:
        """Add a step's loss; return whether a mean was completed, so that there is something new to judge."""
        self.open_sum += loss
        self.open_steps += 1
        if self.open_steps < self.size:
            return False
        self.means.append(self.open_sum / self.size)
        self.open_sum, self.open_steps = 0.0, 0
        if len(self.means) == MOST_BLOCKS:
            self.means = [(a + b) / 2 for a, b in zip(self.means[::2], self.means[1::2], strict=True)]
            self.size *= 2
        return True

    def as_state(self) -> dict[str, Any]:
        """Return it as plain numbers, which JSON keeps to the last bit."""
        return {"version": _VERSION, **asdict(self)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> LossCurve:
        """Put `as_state` back.

        Raises:
            InputError: it is of another version.
        """
        values = dict(state)
        if values.pop("version", None) != _VERSION:
            raise InputError("a loss curve of another version", remedy="start from its modeling folder")
        return cls(**values)


def judge(means: Sequence[float], size: int) -> Flatness | None:
    """Tell whether a loss curve has become flat.

    Flat is a curve whose last quarter brought less than 2% of the whole fall, or that in 200 steps or more has not
    fallen by half a percent of the loss. Both must be sure: what is compared is the fall of the line fitted to the
    means (least squares) plus 2.6 of its standard errors, and a loss that rose by chance counts as one that did not
    fall. So a noisy curve is flat only when the noise has been averaged away, however it looks at the moment.

    Args:
        means: of equally many steps each, in nats.
        size: steps of a mean.

    Returns:
        The figures, or None where the curve is not flat or not known well enough.
    """
    if len(means) < LEAST_BLOCKS:
        return None
    count, steps = len(means) // WINDOW, len(means) * size
    recent, first = means[-count:], means[: len(means) // 20]
    total = sum(first) / len(first) - sum(recent) / count
    fall, at_most = _fall(recent)
    if at_most < FLAT_SHARE * total:
        return Flatness(steps, count * size, fall, at_most, total)
    fall, at_most = _fall(means)
    if steps >= _LEAST_STEPS_WITHOUT_FALL and at_most < NO_FALL_SHARE * sum(means) / len(means):
        return Flatness(steps, steps, fall, at_most, fall)
    return None


def _fall(values: Sequence[float]) -> tuple[float, float]:
    """Fit a line to values one apart; return how far it falls from end to end, and how far at most."""
    count = len(values)
    middle, mean = (count - 1) / 2, sum(values) / count
    spread = sum((place - middle) ** 2 for place in range(count))
    slope = sum((place - middle) * value for place, value in enumerate(values)) / spread
    residuals = (value - mean - slope * (place - middle) for place, value in enumerate(values))
    error = math.sqrt(sum(residual**2 for residual in residuals) / (count - 2) / spread)
    fall = -slope * count
    return fall, max(fall, 0.0) + _SURE * error * count


class FlatnessWatch:
    """Says once when a stage that trains the embeddings alone has stopped paying; the same on every rank.

    Args:
        warmup_steps: steps before which nothing is judged: a learning rate on its way up says little.
        ends: whether the stage is to end then.
        model_dir: folder that the finished model will have, for the remedy.
    """

    def __init__(self, warmup_steps: int, ends: bool, model_dir: Path) -> None:
        self.curve = LossCurve()
        self._warmup_steps, self._ends, self._model_dir = warmup_steps, ends, model_dir

    @property
    def over(self) -> bool:
        """Whether the stage is to end here."""
        return self._ends and self.curve.flat_at is not None

    def after_step(self, step: int, loss: float) -> None:
        """Take note of a step's loss, and judge the curve when there is something new to judge."""
        if not self.curve.add(loss) or self.curve.flat_at is not None or step <= self._warmup_steps:
            return
        flat = judge(self.curve.means, self.curve.size)
        if flat is not None:
            self.curve.flat_at = step
            then = (
                "the stage ends here"
                if self._ends
                else "end it (SIGTERM saves; --stop_when_flat does it by itself) or let it run out"
            )
            cli.say(
                f"step {step}: the embeddings-only stage has stopped paying: {flat}; {then}, and go on to the next "
                f"stage with --load_checkpoint {self._model_dir}"
            )
