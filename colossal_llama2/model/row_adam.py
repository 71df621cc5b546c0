"""Adam for single rows of a matrix: a row that is not named stays as it is, its moments and its count of steps too."""

from __future__ import annotations

import torch


class RowAdam:
    """Adam (Kingma and Ba, arXiv 1412.6980) that counts steps row by row.

    With one count for all, a row that first has a gradient at step 1,000 would go on moving by its momentum for dozens
    of steps in which it does not occur, and its bias correction would be that of an old row.
    """

    def __init__(self, rows: torch.Tensor, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        """Begin with moments of zero.

        Args:
            rows: [N, D], fp32; moved in place by `step`.
            betas: decay of the first and second moment.
            eps: added to the root of the second.
        """
        self.rows = rows
        self._betas, self._eps = betas, eps
        self._first, self._second = torch.zeros_like(rows), torch.zeros_like(rows)
        self.steps = torch.zeros(len(rows), 1, dtype=rows.dtype, device=rows.device)

    @torch.no_grad()
    def step(self, which: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        """Move some rows.

        Args:
            which: [K] int64, their numbers, each once.
            gradient: [K, D].
            lr: the step size.
        """
        one, two = self._betas
        steps = self.steps[which] + 1
        first = self._first[which].lerp(gradient, 1 - one)
        second = self._second[which].lerp(gradient.square(), 1 - two)
        self.steps[which], self._first[which], self._second[which] = steps, first, second
        root = (second / (1 - two**steps)).sqrt() + self._eps
        self.rows[which] -= lr * first / (1 - one**steps) / root
