"""Rows that stood before are moved, a little and always the same way; all others pass as they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from colossal_llama2.model.distinct import Distinct, fingerprints

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def through(rows: torch.Tensor, blocks: int, spread: float = 1.0) -> tuple[torch.Tensor, int]:
    guard = Distinct(lambda: spread)
    return torch.cat([guard.take(block) for block in rows.split(blocks)]), guard.moved


@settings(max_examples=300, deadline=None)
@given(
    values=hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-1, 1)),
    dtype=st.sampled_from(DTYPES),
    blocks=st.sampled_from([1, 2, 100]),
)
def test_all_rows_differ_afterwards(values: np.ndarray, dtype: torch.dtype, blocks: int) -> None:
    rows = torch.from_numpy(values).to(dtype)
    result, moved = through(rows, blocks)
    assert len(torch.unique(result, dim=0)) == len(rows)
    assert moved == len(rows) - len(torch.unique(rows, dim=0))
    first_ones = [i for i in range(len(rows)) if not (rows[:i] == rows[i]).all(1).any()]
    assert first_ones
    assert torch.equal(result[first_ones], rows[first_ones])
    assert torch.equal(through(rows, 3)[0], result)  # whatever the blocks


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_moves_by_a_hundredth_of_the_spread(dtype: torch.dtype) -> None:
    rows = torch.full((2, 4096), 0.05, dtype=dtype)
    result, moved = through(rows, 2, spread=0.5)
    assert moved == 1
    step = (result[1].double() - rows[1].double()).square().mean().sqrt()
    assert float(step) == pytest.approx(0.005, rel=0.05)


def test_rows_of_a_matrix_without_spread_move_too() -> None:
    result, moved = through(torch.zeros(5, 3), 5, spread=0.0)
    assert moved == 4
    assert len(torch.unique(result, dim=0)) == 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_fingerprints_tell_rows_apart_by_one_bit_anywhere(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    row = torch.randn((1, 37), generator=generator, dtype=torch.float64).to(dtype)
    rows = row.repeat(38, 1)
    for place in range(37):
        rows[place + 1, place] = torch.nextafter(rows[0, place], torch.tensor(9.0, dtype=dtype))
    assert len(set(fingerprints(rows))) == 38
    assert len(set(fingerprints(rows.neg()) + fingerprints(rows))) == 76
    assert fingerprints(torch.zeros(1, 5, dtype=dtype)) == fingerprints(-torch.zeros(1, 5, dtype=dtype))
