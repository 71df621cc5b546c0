"""However a matrix is cut into runs, what is added up over the runs is what stands in the matrix."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.engine import token_rows
from colossal_llama2.engine.token_rows import Run, comparison, products, squares


@st.composite
def cut_matrices(draw: st.DrawFn) -> tuple[torch.Tensor, list[Run], range, int]:
    """Draw a matrix, runs that together are it (some empty), some of its rows, and how many numbers go at once."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 7))
    seed = draw(st.integers(0, 99))
    matrix = torch.randn(height, width, generator=torch.Generator().manual_seed(seed))
    cuts = sorted(draw(st.lists(st.integers(0, height * width), max_size=5)))
    flat, bounds = matrix.reshape(-1), [0, *cuts, height * width]
    runs = [Run(a, flat[a:b], width) for a, b in itertools.pairwise(bounds)]
    first = draw(st.integers(0, height))
    return matrix, runs, range(first, draw(st.integers(first, height))), draw(st.sampled_from([1, 5, 1000]))


@given(cut_matrices())
@settings(max_examples=150, deadline=None)
def test_sums_over_runs_are_sums_over_rows(drawn: tuple[torch.Tensor, list[Run], range, int]) -> None:
    matrix, runs, rows, at_once = drawn
    before, token_rows._ELEMENTS_AT_ONCE = token_rows._ELEMENTS_AT_ONCE, at_once
    try:
        chosen = matrix[rows.start : rows.stop].double()
        start = matrix.to(torch.bfloat16) * 0.5
        starts = [
            Run(run.offset, start.reshape(-1)[run.offset : run.offset + len(run.values)], run.width) for run in runs
        ]
        then = start[rows.start : rows.stop].double()
        others = torch.arange(2.0 * matrix.shape[1]).view(2, -1) - 3

        total = sum((squares(run, rows) for run in runs), torch.zeros(len(rows), dtype=torch.float64))
        torch.testing.assert_close(total, chosen.square().sum(1), rtol=1e-5, atol=1e-5)

        compared = sum(
            (comparison(run, old.of_rows(rows), rows) for run, old in zip(runs, starts, strict=True)),
            torch.zeros(len(rows), 4, dtype=torch.float64),
        )
        columns = (chosen.square(), chosen * then, then.square(), (chosen - then).square())
        expected = torch.stack([column.sum(1) for column in columns], 1)
        torch.testing.assert_close(compared, expected, rtol=1e-5, atol=1e-5)

        multiplied = sum((products(run, rows, others) for run in runs), torch.zeros(len(rows), 2, dtype=torch.float64))
        torch.testing.assert_close(multiplied, chosen @ others.double().T, rtol=1e-4, atol=1e-4)
    finally:
        token_rows._ELEMENTS_AT_ONCE = before


def test_only_what_is_asked_for_is_touched() -> None:
    """Ordinary rows are looked at where they lie; only a row that goes on elsewhere is copied to be padded."""
    values = torch.arange(12.0)
    ((row, block),) = Run(6, values, 3).blocks(range(3, 5))
    assert row == 3
    assert block.tolist() == [[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]
    assert block.data_ptr() == values[3:].data_ptr()
    assert list(Run(6, values, 3).blocks(range(2))) == []
    assert list(Run(0, torch.zeros(0), 3).blocks(range(9))) == []
