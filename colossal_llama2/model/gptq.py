"""GPTQ (Frantar et al., arXiv 2210.17323): round a matrix column by column, and let later columns make up for it.

A matrix W [R, C] multiplies inputs x. What counts is not how near the rounded matrix Q is to W, but how near Qx is to
Wx: tr((W - Q) H (W - Q)^T) with H = E[x x^T] from a calibration text. A column once rounded, the columns after it are
moved by the least-squares answer to its error, which the Cholesky factor of H's inverse holds ready for every column.

Numbers are symmetric: ``scale * q`` with q in [-2^(bits-1), 2^(bits-1) - 1], a scale for each group of columns of each
row. Scales are chosen before anything is rounded, so columns may be rounded in order of their weight in H (those that
matter most first, while all others can still make up for them) and lie in their old order in the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_BLOCK = 128  # columns whose errors are gathered before they reach all that follow: one product instead of 128
_SHRINKINGS = tuple(1.0 - step / 50 for step in range(21))  # of the largest scale, down to 0.6


@dataclass(frozen=True)
class Grid:
    """What numbers are rounded to.

    Attributes:
        bits: of a number, 2 to 8.
        group_size: columns that share a scale; it divides the columns.
    """

    bits: int
    group_size: int

    @property
    def lowest(self) -> int:
        """The smallest q."""
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest q."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True)
class Rounded:
    """A matrix in few bits.

    Attributes:
        numbers: q, int8 [R, C].
        scales: [R, C / group_size], in the dtype they are stored in.
        grid: what they were rounded to.
    """

    numbers: torch.Tensor
    scales: torch.Tensor
    grid: Grid

    def dense(self) -> torch.Tensor:
        """Return scale * q, [R, C], in fp32."""
        return self.numbers * self.scales.float().repeat_interleave(self.grid.group_size, dim=1)


def round_to_nearest(weight: torch.Tensor, grid: Grid) -> Rounded:
    """Round each number of a matrix [R, C] to the nearest of the grid; no calibration text is needed.

    Scales are rounded to the weight's dtype first, and the numbers to those scales.
    """
    scales = choose_scales(weight, grid)
    spread = scales.float().repeat_interleave(grid.group_size, dim=1)
    numbers = (weight.float() / spread).round().clamp(grid.lowest, grid.highest)
    return Rounded(numbers.to(torch.int8), scales, grid)


def choose_scales(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Choose the scale of every group, [R, C / group_size], in the dtype of the weight.

    The scale that lets the largest number in exactly is compared with smaller ones, which cut off that number and are
    finer for all others; the one with the least squared error is taken. A group of zeros has scale 1.
    """
    groups = weight.float().unflatten(1, (-1, grid.group_size))
    # a group's largest number reaches the wider, negative end where that is its sign; else the narrower one
    reach = torch.maximum(groups.amax(-1) / grid.highest, groups.amin(-1) / grid.lowest)
    reach = torch.where(reach > 0, reach, torch.ones_like(reach))
    best_error = torch.full_like(reach, torch.inf)
    best = reach.to(weight.dtype)
    for shrinking in _SHRINKINGS:
        scales = (reach * shrinking).to(weight.dtype)
        spread = scales.float().clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
        rounded = (groups / spread).round().clamp(grid.lowest, grid.highest) * spread
        error = (rounded - groups).square().sum(-1)
        better = (error < best_error) & (scales > 0)
        best, best_error = torch.where(better, scales, best), torch.where(better, error, best_error)
    return best


def gptq(weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, damping: float = 0.01) -> Rounded:
    """Round a matrix so that its products with the calibration inputs change as little as may be.

    Args:
        weight: W, [R, C], on the device that computes.
        hessian: sum of x x^T over the inputs, fp32 [C, C], on the same device; its scale does not matter.
        grid: what to round to.
        damping: share of the mean of H's diagonal that is added to the diagonal, against directions no input had.

    Returns:
        The rounded matrix, columns in their old order.

    Raises:
        torch.linalg.LinAlgError: H is not finite.
    """
    scales = choose_scales(weight, grid)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    factor = _inverse_factor(hessian[order][:, order], damping)
    spread = scales.float().repeat_interleave(grid.group_size, dim=1)[:, order]
    left = weight.float()[:, order]
    numbers = torch.empty_like(left)
    for begin in range(0, left.shape[1], _BLOCK):
        columns = slice(begin, begin + _BLOCK)
        triangle = factor[columns, columns]
        block, errors = left[:, columns].clone(), torch.empty_like(left[:, columns])
        for i in range(block.shape[1]):
            scale = spread[:, begin + i]
            q = (block[:, i] / scale).round().clamp(grid.lowest, grid.highest)
            numbers[:, begin + i] = q
            errors[:, i] = (block[:, i] - q * scale) / triangle[i, i]
            block[:, i + 1 :] -= errors[:, i : i + 1] * triangle[i, i + 1 :]
        left[:, begin + _BLOCK :] -= errors @ factor[columns, begin + _BLOCK :]
    in_place = torch.empty_like(numbers)
    in_place[:, order] = numbers
    return Rounded(in_place.to(torch.int8), scales, grid)


def _inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the upper Cholesky factor U of H's inverse, U^T U = H^-1, in fp32; computed in fp64, once a matrix."""
    exact = hessian.double()
    diagonal = exact.diagonal()
    mean = diagonal.mean()
    diagonal += damping * (mean if mean > 0 else 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(exact))
    return torch.linalg.cholesky(inverse, upper=True).float()
