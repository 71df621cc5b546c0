"""Figures that are read late: the same figures, and the moment they were there."""

from __future__ import annotations

import time

import torch

from colossal_llama2.engine.late_numbers import LateNumbers


def test_they_are_the_numbers_of_the_moment_they_were_asked_for() -> None:
    before = time.perf_counter()
    late = LateNumbers(torch.tensor([0.1, -2.0], dtype=torch.float64))
    after = time.perf_counter()
    values, there_at = late.read()
    assert values == [0.1, -2.0]
    assert before <= there_at <= after  # on a CPU they are there at once, however late they are read
    assert late.read()[1] == there_at
