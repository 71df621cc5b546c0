"""Warm-up, cosine, a tenth at the end."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.train.schedule import FINAL_SHARE, cosine_multiplier, default_warmup_steps


@given(total=st.integers(1, 500), warmup=st.integers(0, 100))
def test_shape(total: int, warmup: int) -> None:
    values = [cosine_multiplier(step, total, warmup) for step in range(total)]
    assert all(0 < value <= 1 for value in values)
    rising, falling = values[: min(warmup, total)], values[warmup:]
    assert all(a < b for a, b in itertools.pairwise(rising))
    assert all(a >= b for a, b in itertools.pairwise(falling))
    if total > warmup:
        assert values[warmup] == 1.0
    if total > warmup + 1:
        assert math.isclose(values[-1], FINAL_SHARE)
    assert math.isclose(cosine_multiplier(total + 1000, max(total, warmup + 2), warmup), FINAL_SHARE)


def test_half_way_down_is_half_way_between() -> None:
    assert math.isclose(cosine_multiplier(5, 11, 0), (1 + FINAL_SHARE) / 2)


def test_the_first_warm_up_step_already_learns_and_the_last_reaches_the_peak() -> None:
    assert cosine_multiplier(0, 100, 4) == 0.25
    assert cosine_multiplier(3, 100, 4) == 1.0


def test_default_warm_up_is_a_fortieth() -> None:
    assert default_warmup_steps(1000) == 25
    assert default_warmup_steps(10) == 0
