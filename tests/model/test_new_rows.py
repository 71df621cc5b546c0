"""New rows against an independent float64 computation; old rows bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.model import new_rows
from colossal_llama2.model.cuts import Cuts, colliding
from colossal_llama2.model.distinct import Distinct
from colossal_llama2.model.new_rows import (
    RowPlan,
    as_given,
    averages,
    deviation_of_all,
    drawn,
    expanded_rows,
    mean_of_all,
    mean_rows,
    plan_rows,
    spread,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def cuts_of(bags: list[list[int]]) -> Cuts:
    ids = torch.tensor([index for bag in bags for index in bag], dtype=torch.int64)
    return Cuts(ids, torch.tensor([0, *np.cumsum([len(bag) for bag in bags])], dtype=torch.int64))


def expand(base: torch.Tensor, bags: list[list[int]], plan: RowPlan, telling: bool = False) -> torch.Tensor:
    return torch.cat(list(expanded_rows(base, averages(cuts_of(bags), telling), plan)))


def expected_weights(bags: list[list[int]], telling: bool) -> list[list[float]]:
    """Work the weights out again: by how many parts of all pieces a part is, and tilted where proportions collide."""
    total = sum(len(bag) for bag in bags)
    shares = {token: sum(bag.count(token) for bag in bags) / total for bag in bags for token in bag}
    proportions = [{token: bag.count(token) / len(bag) for token in bag} for bag in bags]
    weights = []
    for bag, own in zip(bags, proportions, strict=True):
        row = [0.001 / (0.001 + shares[token]) if telling else 1.0 for token in bag]
        if proportions.count(own) > 1:
            row = [weight * (1 + 0.25 * 0.5 ** (len(bag) - 1 - place)) for place, weight in enumerate(row)]
        weights.append([weight / sum(row) for weight in row])
    return weights


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
@given(case=cases(), rows_at_once=st.sampled_from([1, 3, 2048]), telling=st.booleans())
def test_every_row_is_what_it_should_be(
    case: tuple[torch.Tensor, list[list[int]], RowPlan], rows_at_once: int, telling: bool
) -> None:
    base, bags, plan = case
    before, new_rows._ROWS_AT_ONCE = new_rows._ROWS_AT_ONCE, rows_at_once  # type: ignore[misc]
    try:
        result = expand(base, bags, plan, telling)
    finally:
        new_rows._ROWS_AT_ONCE = before  # type: ignore[misc]
    assert result.dtype == base.dtype
    assert result.shape == (plan.num_rows, *base.shape[1:])
    assert torch.equal(result[: plan.num_base], base[: plan.num_base])
    exact = base.to(torch.float64).numpy()
    # half the distance to the next number of the dtype, and float32's own rounding on the way
    tolerance = torch.finfo(base.dtype).eps * 0.5 + (3e-7 if base.dtype != torch.float64 else 1e-15)
    for index, (bag, weights) in enumerate(zip(bags, expected_weights(bags, telling), strict=True)):
        expected = sum(weight * exact[token] for weight, token in zip(weights, bag, strict=True))
        actual = result[plan.num_base + index].to(torch.float64).numpy()
        assert np.all(np.abs(actual - expected) <= 1.01 * tolerance * max(0.02, np.abs(expected).max()) + 1e-9)
    assert torch.equal(result[plan.num_tokens : len(base)], base[plan.num_tokens :])
    padding = result[max(plan.num_tokens, len(base)) :]
    if len(padding):
        mean = exact[: plan.num_base].mean(0)
        assert np.allclose(padding.to(torch.float64).numpy(), mean, rtol=2 * tolerance, atol=2 * tolerance * 0.05)


@settings(max_examples=200, deadline=None)
@given(case=cases(), rows_at_once=st.sampled_from([1, 3, 2048]), telling=st.booleans())
def test_no_two_new_rows_start_identical(
    case: tuple[torch.Tensor, list[list[int]], RowPlan], rows_at_once: int, telling: bool
) -> None:
    base, bags, plan = case
    base = base.reshape(len(base), -1)
    repeated = len(bags)
    bags = [*bags, *bags[:2], *([bags[0][::-1]] if bags else [])]  # the very same cut again, and one turned round
    plan = plan_rows(plan.num_base, plan.num_base + len(bags), len(base), 1)
    before, new_rows._ROWS_AT_ONCE = new_rows._ROWS_AT_ONCE, rows_at_once  # type: ignore[misc]
    try:
        source = averages(cuts_of(bags), telling)
        plain = torch.cat(list(expanded_rows(base, source, plan)))
        guard = Distinct(lambda: spread(base[: plan.num_base]))
        result = torch.cat(list(expanded_rows(base, source, plan, guard)))
    finally:
        new_rows._ROWS_AT_ONCE = before  # type: ignore[misc]
    new = result[plan.num_base : plan.num_tokens]
    assert len(torch.unique(new, dim=0)) == len(bags)
    assert guard.moved >= min(repeated, 2)
    changed = (result != plain).any(1)
    assert int(changed.sum()) == guard.moved
    assert not changed[: plan.num_base].any()


def test_rows_that_do_not_collide_are_plain_means_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn((50, 16), generator=generator)
    bags = [[1, 2, 3], [3, 2, 1], [4, 5], [6], [7, 7, 8]]
    cuts = cuts_of(bags)
    assert colliding(cuts).tolist() == [True, True, False, False, False]
    rows = torch.cat(list(averages(cuts)(base)))
    plain = mean_rows(base, cuts.ids, cuts.offsets)
    assert torch.equal(rows[2:], plain[2:])
    assert not torch.equal(rows[0], rows[1])
    # told apart, and still close by: a small part of the way from the mean to any of its parts
    assert (rows[:2] - plain[:2]).norm(dim=1).max() < 0.1 * (base[1:4] - plain[0]).norm(dim=1).min()


def test_random_rows_have_the_matrixs_mean_and_deviation() -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn((4000, 3), generator=generator) * torch.tensor([0.1, 1.0, 5.0]) + torch.tensor([3.0, 0.0, -1.0])
    source = drawn(6000, seed=5)
    rows = torch.cat(list(source(base)))
    assert rows.shape == (6000, 3)
    assert torch.equal(rows, torch.cat(list(source(base))))
    assert not torch.equal(rows, torch.cat(list(drawn(6000, seed=6)(base))))
    exact = base.double().numpy()
    assert np.allclose(deviation_of_all(base).numpy()[0], exact.std(0), rtol=1e-12)
    assert np.allclose(rows.numpy().mean(0), exact.mean(0), atol=5 * exact.std(0).max() / 77)
    assert np.allclose(rows.numpy().std(0), exact.std(0), rtol=0.05)
    assert spread(base[:2000]) == pytest.approx(np.sqrt((exact[:2000].std(0) ** 2).mean()))
    assert spread(base) == pytest.approx(np.sqrt((exact.std(0) ** 2).mean()), rel=0.05)


def test_given_rows_are_taken_as_they_are() -> None:
    rows = torch.arange(12.0).reshape(4, 3)
    plan = plan_rows(2, 6, 2, 1)
    result = torch.cat(list(expanded_rows(torch.zeros(2, 3), as_given(rows), plan)))
    assert torch.equal(result, torch.cat([torch.zeros(2, 3), rows]))


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
