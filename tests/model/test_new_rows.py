"""New rows against an independent float64 computation; old rows bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.model import new_rows
from colossal_llama2.model.new_rows import RowPlan, expanded_rows, mean_of_all, mean_rows, plan_rows

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def expand(base: torch.Tensor, bags: list[list[int]], plan: RowPlan) -> torch.Tensor:
    ids = torch.tensor([index for bag in bags for index in bag], dtype=torch.int64)
    offsets = torch.tensor([0, *np.cumsum([len(bag) for bag in bags])], dtype=torch.int64)
    return torch.cat(list(expanded_rows(base, ids, offsets, plan)))


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, list[list[int]], RowPlan]:
    num_base = draw(st.integers(1, 20))
    spare = draw(st.integers(0, 5))
    dtype = draw(st.sampled_from(DTYPES))
    bags = draw(st.lists(st.lists(st.integers(0, num_base - 1), min_size=1, max_size=6), max_size=9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    shape = (num_base + spare, 3) if draw(st.booleans()) else (num_base + spare,)
    base = (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.02).to(dtype)
    return base, bags, plan_rows(num_base, num_base + len(bags), num_base + spare, draw(st.integers(1, 8)))


@settings(max_examples=300, deadline=None)
@given(case=cases(), rows_at_once=st.sampled_from([1, 3, 2048]))
def test_every_row_is_what_it_should_be(case: tuple[torch.Tensor, list[list[int]], RowPlan], rows_at_once: int) -> None:
    base, bags, plan = case
    before, new_rows._ROWS_AT_ONCE = new_rows._ROWS_AT_ONCE, rows_at_once  # type: ignore[misc]
    try:
        result = expand(base, bags, plan)
    finally:
        new_rows._ROWS_AT_ONCE = before  # type: ignore[misc]
    assert result.dtype == base.dtype
    assert result.shape == (plan.num_rows, *base.shape[1:])
    assert torch.equal(result[: plan.num_base], base[: plan.num_base])
    exact = base.to(torch.float64).numpy()
    # half the distance to the next number of the dtype, and float32's own rounding on the way
    tolerance = torch.finfo(base.dtype).eps * 0.5 + (1e-7 if base.dtype != torch.float64 else 1e-15)
    for index, bag in enumerate(bags):
        expected = sum(exact[token] for token in bag) / len(bag)
        actual = result[plan.num_base + index].to(torch.float64).numpy()
        assert np.all(np.abs(actual - expected) <= 1.01 * tolerance * max(0.02, np.abs(expected).max()) + 1e-9)
    assert torch.equal(result[plan.num_tokens : len(base)], base[plan.num_tokens :])
    padding = result[max(plan.num_tokens, len(base)) :]
    if len(padding):
        mean = exact[: plan.num_base].mean(0)
        assert np.allclose(padding.to(torch.float64).numpy(), mean, rtol=2 * tolerance, atol=2 * tolerance * 0.05)


@given(num_base=st.integers(1, 100), new=st.integers(0, 100), spare=st.integers(0, 100), multiple=st.integers(1, 70))
def test_plan(num_base: int, new: int, spare: int, multiple: int) -> None:
    plan = plan_rows(num_base, num_base + new, num_base + spare, multiple)
    least = max(num_base + new, num_base + spare)
    assert plan.num_rows % multiple == 0
    assert least <= plan.num_rows < least + multiple


def test_half_precision_is_accumulated_in_single() -> None:
    base = torch.tensor([[256.0], [1.0]], dtype=torch.bfloat16)
    bag = [0] + [1] * 255  # in bfloat16 256 + 1 is 256 again
    mean = mean_rows(base, torch.tensor([bag]).flatten(), torch.tensor([0, len(bag)]))
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(511 / 256)
    assert mean_of_all(base).item() == 128.5
