"""The coefficient of the KL penalty: constant, or steered towards a target."""

from __future__ import annotations

from typing import Protocol


class KlControl(Protocol):
    """What weighs the KL penalty, and is told what KL came of it."""

    @property
    def coef(self) -> float:
        """The coefficient for the next rollout."""

    def update(self, kl: float, num_answers: int) -> None:
        """Learn the mean KL per answer, in nats, of a rollout: the same number on every rank."""

    def as_state(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""

    def load_state(self, state: dict[str, float]) -> None:
        """Go on from what a checkpoint kept."""


class FixedKl:
    """A coefficient that stays (both ancestors: 0.1)."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def update(self, kl: float, num_answers: int) -> None:
        """Stay."""

    def as_state(self) -> dict[str, float]:
        """Return nothing: the coefficient is the settings'."""
        return {}

    def load_state(self, state: dict[str, float]) -> None:
        """Take nothing: the coefficient is the settings', also after a resume."""


class AdaptiveKl:
    """A coefficient steered so that the KL of a whole answer comes to a target (Ziegler et al., arXiv 1909.08593).

        e    = clip(KL / target - 1, -0.2, 0.2)
        coef = coef * (1 + K e),  K = answers of the rollout / horizon

    Attributes:
        coef: beta.
    """

    def __init__(self, coef: float, target: float, horizon: int) -> None:
        """Start.

        Args:
            coef: the first coefficient, above 0: multiplying never leaves 0.
            target: mean over answers of the sum of KL over the tokens of an answer, in nats (their code: 6).
            horizon: answers over which an error of 20% changes the coefficient by 20%; the paper's K is 0.1.
        """
        assert coef > 0, "a coefficient of zero cannot be steered"
        assert target > 0, "a KL of zero is no target: nothing could be learned"
        assert horizon > 0, "the horizon is a number of answers"
        self.coef = coef
        self._target = target
        self._horizon = horizon

    def update(self, kl: float, num_answers: int) -> None:
        """Steer after a rollout.

        Args:
            kl: mean over the answers of all ranks of each answer's summed KL, in nats.
            num_answers: answers of all ranks.
        """
        error = min(max(kl / self._target - 1.0, -0.2), 0.2)
        self.coef *= 1.0 + error * num_answers / self._horizon

    def as_state(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"coef": self.coef}

    def load_state(self, state: dict[str, float]) -> None:
        """Go on from what a checkpoint kept."""
        self.coef = float(state["coef"])
