"""GPTQ against its definition in fp64, and against rounding to the nearest, which changes products more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.model.gptq import Grid, choose_scales, gptq, round_to_nearest

DAMPING = 0.01


def problem(rows: int = 6, columns: int = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Give a matrix, and H of inputs whose columns hang together."""
    made = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=made)
    inputs = torch.randn(4 * columns, columns, generator=made) @ mixing
    return torch.randn(rows, columns, generator=made), inputs.T @ inputs


def by_definition(weight: torch.Tensor, hessian: torch.Tensor, scales: torch.Tensor, grid: Grid) -> np.ndarray:
    """Round one column after the other in fp64; all that are left answer by least squares to each error.

    Of H over the columns F that are left, the answer of column k to an error e of column j is -e [H_F^-1]_jk /
    [H_F^-1]_jj (equation 2 of the paper); the inverse is made anew for every column.
    """
    w, h = weight.double().numpy().copy(), hessian.double().numpy().copy()
    h[np.diag_indices_from(h)] += DAMPING * np.diag(h).mean()
    spread = scales.double().numpy().repeat(grid.group_size, axis=1)
    left = list(np.argsort(-hessian.diagonal().numpy(), kind="stable"))
    numbers = np.zeros_like(w)
    while left:
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        column, others = left[0], left[1:]
        numbers[:, column] = np.clip(np.rint(w[:, column] / spread[:, column]), grid.lowest, grid.highest)
        error = w[:, column] - numbers[:, column] * spread[:, column]
        w[:, others] -= np.outer(error, inverse[0, 1:] / inverse[0, 0])
        left = others
    return numbers


@pytest.mark.parametrize(("columns", "group_size"), [(32, 8), (32, 32), (144, 16), (260, 260)])
def test_it_does_what_the_paper_defines(columns: int, group_size: int) -> None:
    weight, hessian = problem(columns=columns)
    grid = Grid(4, group_size)
    rounded = gptq(weight, hessian, grid, DAMPING)
    expected = by_definition(weight, hessian, rounded.scales, grid)
    assert (rounded.numbers.numpy() == expected).mean() > 0.99  # an fp32 sum may fall on the other side of a half
    nearest = round_to_nearest(weight, grid).numbers
    assert (nearest.numpy() != expected).mean() > 0.05  # so the comparison is about something


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([3, 4, 8]))
def test_products_change_less_than_by_rounding_to_the_nearest(seed: int, bits: int) -> None:
    weight, hessian = problem(rows=16, columns=48, seed=seed)

    def harm(dense: torch.Tensor) -> float:
        off = (dense - weight).double()
        return float((off @ hessian.double() * off).sum())

    grid = Grid(bits, 16)
    assert harm(gptq(weight, hessian, grid).dense()) < harm(round_to_nearest(weight, grid).dense())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_and_scales_are_what_is_stored(bits: int, dtype: torch.dtype) -> None:
    weight, hessian = problem()
    weight = weight.to(dtype)
    for rounded in (gptq(weight, hessian, Grid(bits, 8)), round_to_nearest(weight, Grid(bits, 8))):
        assert rounded.numbers.dtype == torch.int8
        assert rounded.numbers.shape == weight.shape
        assert rounded.scales.shape == (6, 4)
        assert rounded.scales.dtype == dtype
        assert rounded.numbers.int().min() >= -(2 ** (bits - 1))
        assert rounded.numbers.int().max() < 2 ** (bits - 1)


def test_scales_lie_below_what_lets_the_largest_in_and_err_less() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(3)) ** 3  # a few numbers far outside
    grid = Grid(4, 64)
    rounded = round_to_nearest(weight, grid)
    reach = weight.abs().amax(1, keepdim=True) / grid.highest
    plain = (weight / reach).round().clamp(-8, 7) * reach
    assert (rounded.scales <= reach).all()
    assert (rounded.dense() - weight).square().sum() < (plain - weight).square().sum()


def test_a_group_of_zeros_stays_zero_and_a_column_without_inputs_goes_to_the_nearest() -> None:
    weight, hessian = problem()
    weight[:, :8] = 0
    hessian[20], hessian[:, 20] = 0, 0
    rounded = gptq(weight, hessian, Grid(4, 8))
    assert (choose_scales(weight, Grid(4, 8))[:, 0] == 1).all()
    assert rounded.dense().isfinite().all()
    assert torch.equal(rounded.numbers[:, 20], round_to_nearest(weight, Grid(4, 8)).numbers[:, 20])


def test_inputs_that_are_not_finite_are_an_error() -> None:
    weight, hessian = problem()
    hessian[0, 0] = torch.nan
    with pytest.raises(torch.linalg.LinAlgError):
        gptq(weight, hessian, Grid(4, 8))
