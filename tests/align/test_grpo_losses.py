"""GRPO against float64 loops over groups, answers and tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.align.grpo_losses import TokenTriple, group_advantages, grpo
from colossal_llama2.align.log_probs import answer_weights
from colossal_llama2.align.ppo_losses import PolicyClip


@given(seed=st.integers(0, 999), divide=st.booleans())
@settings(max_examples=40, deadline=None)
def test_advantages_equal_numpy_within_each_group(seed: int, divide: bool) -> None:
    rng = np.random.default_rng(seed)
    scores, groups = rng.normal(size=10) * 5, rng.integers(0, 4, size=10)
    found = group_advantages(torch.tensor(scores), torch.tensor(groups), divide)
    for i in range(10):
        mine = scores[groups == groups[i]]
        deviation = mine.std(ddof=1) if len(mine) > 1 else 0.0
        wanted = (scores[i] - mine.mean()) / (deviation + 1e-4 if divide else 1.0)
        assert float(found[i]) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_a_group_worked_by_hand() -> None:
    # scores 1, 2, 3: deviation 1; a group of one and a group of equals have nothing to compare
    scores = torch.tensor([1.0, 7.0, 2.0, 3.0, 0.1, 0.1, 0.1])
    groups = torch.tensor([0, 1, 0, 0, 2, 2, 2])
    found = group_advantages(scores, groups).tolist()
    assert found == pytest.approx([-1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], abs=2e-4)


@given(seed=st.integers(0, 999), per_answer=st.booleans(), beta=st.sampled_from([0.0, 0.04]))
@settings(max_examples=40, deadline=None)
def test_equals_the_loop(seed: int, per_answer: bool, beta: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    new, old, reference = torch.randn(3, 8, dtype=torch.float64, generator=generator)
    numbers = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])
    advantages = torch.randn(3, dtype=torch.float64, generator=generator)[numbers]
    weights = answer_weights(numbers, torch.tensor([3, 1, 4])) if per_answer else torch.ones(8)
    total = kl = 0.0
    for t in range(8):
        ratio = math.exp(float(new[t] - old[t]))
        gain = min(ratio * float(advantages[t]), min(max(ratio, 0.8), 1.28) * float(advantages[t]))
        r = math.exp(float(reference[t] - new[t]))
        total += float(weights[t]) * (-gain + beta * (r - 1 - math.log(r)))
        kl += float(weights[t]) * (r - 1 - math.log(r))
    found = grpo(TokenTriple(new, old, reference), advantages, weights, beta, PolicyClip(0.2, 0.28))
    assert float(found.loss) == pytest.approx(total, rel=1e-6)
    assert float(found.kl) == pytest.approx(kl, rel=1e-6)
    assert float(found.policy.weight) == pytest.approx(3.0 if per_answer else 8.0)


def test_without_a_reference_there_is_no_kl() -> None:
    new = torch.randn(4, requires_grad=True)
    found = grpo(TokenTriple(new, new.detach(), None), torch.ones(4), torch.ones(4), beta=0.0)
    found.loss.backward()
    assert float(found.kl) == 0.0
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([-1.0] * 4)


def test_gradcheck_and_tokens_of_no_answer() -> None:
    new, old, reference, advantages = torch.randn(4, 6, dtype=torch.float64)
    weights = torch.tensor([1.0, 0.5, 0.5, 0.0, 1.0, 0.0], dtype=torch.float64)
    outside = torch.where(weights > 0, reference, float("nan"))
    new.requires_grad_()
    found = grpo(TokenTriple(new, old, outside), advantages, weights)
    found.loss.backward()
    assert new.grad is not None
    assert bool(new.grad.isfinite().all())
    assert new.grad[[3, 5]].tolist() == [0.0, 0.0]
    assert torch.autograd.gradcheck(lambda x: grpo(TokenTriple(x, old, reference), advantages, weights).loss, new)


def test_a_reference_far_away_stays_a_number_and_pulls_back() -> None:
    new = torch.tensor([-100.0, -1.0], requires_grad=True)
    found = grpo(TokenTriple(new, new.detach(), torch.tensor([-1.0, -100.0])), torch.zeros(2), torch.ones(2))
    found.loss.backward()
    assert bool(found.loss.isfinite())
    assert new.grad is not None
    assert float(new.grad[0]) < 0 < float(new.grad[1])
