"""Running scores against numpy over everything seen, whatever the batches and ranks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.align.ppo_losses import masked_moments
from colossal_llama2.align.reward_scaling import RunningScores


def moments(scores: np.ndarray) -> torch.Tensor:
    tensor = torch.tensor(scores)
    return masked_moments(tensor, torch.ones_like(tensor, dtype=torch.bool))


@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    mean=st.sampled_from([0.0, 1e4]),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_merged_batches_have_the_moments_of_all(sizes: list[int], mean: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = [rng.normal(size=size) * 3 + mean for size in sizes]
    running = RunningScores()
    for batch in batches:
        running.merge(moments(batch))
    everything = np.concatenate(batches)
    assert running.count == len(everything)
    if len(everything):
        assert running.mean == pytest.approx(everything.mean(), rel=1e-12)
        assert running.deviation == pytest.approx(everything.std(), rel=1e-6, abs=1e-4)


def test_ranks_add_up_their_moments_and_agree() -> None:
    scores = np.random.default_rng(0).normal(size=12)
    whole, divided = RunningScores(), RunningScores()
    whole.merge(moments(scores))
    divided.merge(moments(scores[:5]) + moments(scores[5:]))
    assert divided.as_state() == pytest.approx(whole.as_state())


def test_scores_are_brought_to_mean_zero_and_deviation_one() -> None:
    running = RunningScores()
    running.merge(moments(np.array([1.0, 3.0])))  # mean 2, deviation 1
    assert running.normalise(torch.tensor([2.0, 5.0])).tolist() == pytest.approx([0.0, 3.0])
    assert running.normalise(torch.tensor([2.0, 5.0]), shift_mean=False).tolist() == pytest.approx([2.0, 5.0])


def test_equal_scores_are_not_divided_by_their_rounding() -> None:
    running = RunningScores()
    assert running.normalise(torch.tensor([0.3])).tolist() == pytest.approx([0.3])
    running.merge(moments(np.array([0.1] * 7)))
    running.merge(moments(np.array([0.1] * 5)))
    assert running.normalise(torch.tensor([0.1, 1.1])).tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert running.normalise(torch.tensor([0.1]), shift_mean=False).tolist() == pytest.approx([0.1])


def test_a_resumed_one_goes_on_as_if_nothing_had_happened() -> None:
    batches = np.random.default_rng(1).normal(size=(4, 5))
    whole, first, resumed = RunningScores(), RunningScores(), RunningScores()
    for batch in batches:
        whole.merge(moments(batch))
    for batch in batches[:2]:
        first.merge(moments(batch))
    resumed.load_state(json.loads(json.dumps(first.as_state())))
    for batch in batches[2:]:
        resumed.merge(moments(batch))
    assert resumed.as_state() == whole.as_state()
