"""What new rows look like beside old ones and beside themselves at the start: pure arithmetic on sums over rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

RUNAWAY = 2.0
"""Times the norm a row started with, and that 99 in 100 old rows stay under. A logit grows with the norm of its row:
at twice the norm of nearly every other row, one token begins to decide the softmax wherever its direction is near."""
_ORDINARY = 0.99
_TINY = 1e-30


@dataclass(frozen=True)
class Spread:
    """Mean, smallest and largest of some numbers."""

    mean: float
    least: float
    most: float

    @classmethod
    def of(cls, values: torch.Tensor) -> Spread:
        """Summarise a tensor that is not empty."""
        return cls(float(values.mean()), float(values.min()), float(values.max()))


@dataclass(frozen=True)
class RowHealth:
    """How the new rows of one matrix are.

    Attributes:
        norm: of the new rows.
        old_norm: of the old rows.
        cosine: between a new row and itself at the start.
        distance: that a new row has moved, in norms it started with.
        unseen: share of the new tokens that never stood there: as input (never updated), or as label.
        runaways: numbers of new rows whose norm is out of hand, the largest first, with the norm then and now.
    """

    norm: Spread
    old_norm: Spread
    cosine: Spread
    distance: Spread
    unseen: float
    runaways: list[tuple[int, float, float]]

    def figures(self, unseen_name: str) -> dict[str, float | None]:
        """Return the figures by the names they are logged under; None for what is not finite, which JSON cannot say."""
        named: dict[str, float] = {}
        for name in ("norm", "old_norm", "cosine", "distance"):
            spread: Spread = getattr(self, name)
            named |= {f"{name}_mean": spread.mean, f"{name}_min": spread.least, f"{name}_max": spread.most}
        named |= {unseen_name: self.unseen, "runaways": len(self.runaways)}
        return {name: value if math.isfinite(value) else None for name, value in named.items()}


def row_health(compared: torch.Tensor, old_squares: torch.Tensor, seen: torch.Tensor) -> RowHealth:
    """Work out how new rows are.

    Args:
        compared: [N, 4] fp64: of each new row, squares now, products of now and then, squares then, squares of the
            difference, each added up along the row.
        old_squares: [M] fp64: of each old row, squares now.
        seen: [N] bool: whether the token stood where it teaches this matrix.
    """
    now, product, then, difference = compared.unbind(1)
    norm, start = now.sqrt(), then.sqrt()
    old = old_squares.sqrt()
    cosine = (product / (norm * start).clamp_min(_TINY)).clamp(-1.0, 1.0)
    distance = difference.sqrt() / start.clamp_min(_TINY)
    limit = RUNAWAY * torch.maximum(start, torch.quantile(old, _ORDINARY))
    away = sorted((norm > limit).nonzero().flatten().tolist(), key=lambda number: -float(norm[number]))
    return RowHealth(
        norm=Spread.of(norm),
        old_norm=Spread.of(old),
        cosine=Spread.of(cosine),
        distance=Spread.of(distance),
        unseen=1.0 - float(seen.double().mean()),
        runaways=[(number, float(start[number]), float(norm[number])) for number in away],
    )


def nearest(
    products: torch.Tensor, norms: torch.Tensor, old_norms: torch.Tensor, count: int
) -> list[list[tuple[int, float]]]:
    """Find the old rows of the largest cosine with each of K rows.

    Args:
        products: [M, K], of every old row with every one of the K.
        norms: [K].
        old_norms: [M]; an old row of zeros is near to nothing.
        count: how many to name.

    Returns:
        For each of the K, (number of the old row, cosine), the nearest first.
    """
    cosines = products / (old_norms[:, None] * norms[None]).clamp_min(_TINY)
    values, numbers = cosines.topk(min(count, len(cosines)), dim=0)
    columns = zip(numbers.T.tolist(), values.T.tolist(), strict=True)
    return [list(zip(found, cosine, strict=True)) for found, cosine in columns]
