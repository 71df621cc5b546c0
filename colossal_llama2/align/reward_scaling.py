"""Mean and deviation of all scores seen so far, to bring rewards to one scale."""

from __future__ import annotations

import math

import torch

from colossal_llama2.align.chunks import at_least_fp32


class RunningScores:
    """Running mean and variance that batches are merged into (Chan, Golub and LeVeque, 1979; Welford, 1962).

    Attributes:
        count: scores seen.
        mean: of them.
    """

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self._squares = 0.0  # sum of squared distances from the mean

    @property
    def deviation(self) -> float:
        """Standard deviation of the population seen; 0 before the second score."""
        return math.sqrt(self._squares / self.count) if self.count > 1 else 0.0

    def merge(self, moments: torch.Tensor) -> None:
        """Take in a batch.

            d    = mean_batch - mean
            mean = mean + d n_batch / n
            M2   = M2 + M2_batch + d^2 n_old n_batch / n

        Args:
            moments: [3] float64, count, sum and sum of squares of the scores of all ranks (`masked_moments`, added up),
                so that every rank's state stays the same.
        """
        count, total, squares = moments.tolist()
        if not count:
            return
        mean = total / count
        distance, seen = mean - self.mean, self.count + count
        self._squares += max(squares - count * mean * mean, 0.0) + distance * distance * self.count * count / seen
        self.mean += distance * count / seen
        self.count = seen

    def normalise(self, scores: torch.Tensor, shift_mean: bool = True, eps: float = 1e-8) -> torch.Tensor:
        """Divide scores by the running deviation, having taken off the running mean unless it is to stay.

        Args:
            scores: any shape.
            shift_mean: False keeps the sign of scores that mean something at zero.
            eps: added to the variance.

        Returns:
            The same shape, fp32; unchanged in scale while all scores seen were the same.
        """
        shifted = at_least_fp32(scores) - (self.mean if shift_mean else 0.0)
        if self.deviation <= 1e-6 * abs(self.mean):  # rounding of equal scores is no deviation to divide by
            return shifted
        return shifted / math.sqrt(self.deviation**2 + eps)

    def as_state(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state(self, state: dict[str, float]) -> None:
        """Go on from what a checkpoint kept."""
        self.count, self.mean, self._squares = (float(state[name]) for name in ("count", "mean", "squares"))
