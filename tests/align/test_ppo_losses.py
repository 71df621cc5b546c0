"""PPO's arithmetic against float64 loops over single answers, worked cases, and whatever lies outside the mask."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.align.log_probs import answer_weights
from colossal_llama2.align.ppo_losses import (
    PolicyClip,
    final_scores,
    gae,
    masked_moments,
    policy_loss,
    ptx_weights,
    shaped_rewards,
    value_loss,
    whiten,
)


def random_mask(generator: torch.Generator, rows: int, columns: int) -> torch.Tensor:
    return torch.rand(rows, columns, generator=generator) < 0.7


def fill_outside(values: torch.Tensor, mask: torch.Tensor, with_what: float) -> torch.Tensor:
    return torch.where(mask, values, with_what)


def gae_by_hand(rewards: list[float], values: list[float], gamma: float, lam: float) -> tuple[list[float], list[float]]:
    """Sum (gamma lam)^l delta_{t+l}, as the paper writes it, rather than by the recurrence."""
    deltas = [r + gamma * (values[t + 1] if t + 1 < len(values) else 0.0) - values[t] for t, r in enumerate(rewards)]
    advantages = [
        sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, len(deltas))) for t in range(len(deltas))
    ]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 8),
    gamma=st.sampled_from([1.0, 0.9]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=80, deadline=None)
def test_rewards_and_advantages_equal_the_loop(rows: int, columns: int, gamma: float, lam: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask(generator, rows, columns)
    kl, values = torch.randn(2, rows, columns, dtype=torch.float64, generator=generator)
    scores = torch.randn(rows, dtype=torch.float64, generator=generator)
    nan = float("nan")
    rewards = shaped_rewards(scores, fill_outside(kl, mask, nan), mask, kl_coef=0.1)
    found = gae(fill_outside(rewards, mask, nan), fill_outside(values, mask, nan), mask, gamma, lam)
    for b in range(rows):
        answer = mask[b].nonzero()[:, 0].tolist()
        wanted = [-0.1 * float(kl[b, t]) for t in answer]
        if answer:
            wanted[-1] += float(scores[b])
        np.testing.assert_allclose(rewards[b, answer], wanted, rtol=1e-10, atol=1e-12)
        advantages, returns = gae_by_hand(wanted, values[b, answer].tolist(), gamma, lam)
        np.testing.assert_allclose(found.advantages[b, answer], advantages, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.returns[b, answer], returns, rtol=1e-9, atol=1e-12)
    assert not rewards[~mask].any()
    assert not found.advantages[~mask].any()
    assert not found.returns[~mask].any()


def test_an_answer_of_two_tokens_worked_by_hand() -> None:
    mask = torch.tensor([[False, True, True, False]])
    rewards = shaped_rewards(torch.tensor([2.0]), torch.tensor([[9.0, 0.5, 1.0, 9.0]]), mask, kl_coef=0.2)
    assert rewards.tolist()[0] == pytest.approx([0.0, -0.1, 1.8, 0.0])
    # deltas: -0.1 + 0.9 * 2 - 1 = 0.7 and 1.8 - 2 = -0.2; A_1 = 0.7 + 0.9 * 0.5 * -0.2 = 0.61
    values = torch.tensor([[9.0, 1.0, 2.0, 9.0]])
    found = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    assert found.advantages.tolist()[0] == pytest.approx([0.0, 0.61, -0.2, 0.0])
    assert found.returns.tolist()[0] == pytest.approx([0.0, 1.61, 1.8, 0.0])


def test_one_token_and_empty_answers() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    rewards = shaped_rewards(torch.tensor([3.0, 5.0]), torch.zeros(2, 2), mask, 0.1)
    assert rewards.tolist() == [[3.0, 0.0], [0.0, 0.0]]
    found = gae(rewards, torch.tensor([[1.0, 7.0], [7.0, 7.0]]), mask)
    assert found.advantages.tolist() == [[2.0, 0.0], [0.0, 0.0]]


def test_scores_are_clipped_before_the_penalty_of_an_answer_that_never_ends() -> None:
    scores = torch.tensor([9.0, 9.0, -9.0, 1.0])
    ended = torch.tensor([True, False, False, True])
    assert final_scores(scores, ended, missing_end_penalty=2.0, clip=5.0).tolist() == [5.0, 3.0, -7.0, 1.0]
    assert torch.equal(final_scores(scores), scores)


@given(seed=st.integers(0, 999), mean=st.sampled_from([0.0, 1e4]), shift=st.booleans())
@settings(max_examples=40, deadline=None)
def test_whitening_equals_numpy_over_the_mask(seed: int, mean: float, shift: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 9, generator=generator, dtype=torch.float64) + mean
    mask = random_mask(generator, 4, 9)
    moments = masked_moments(values[:1], mask[:1]) + masked_moments(values[1:], mask[1:])  # two ranks
    taken = values[mask].numpy()
    found = whiten(fill_outside(values, mask, float("inf")), mask, moments, shift)
    assert not found[~mask].any()
    if len(taken) > 1:
        wanted = (taken - taken.mean()) / taken.std() + (0.0 if shift else taken.mean())
        np.testing.assert_allclose(found[mask], wanted, rtol=1e-4, atol=1e-4)


def test_whitening_of_equal_values_of_one_value_and_of_nothing() -> None:
    values = torch.full((2, 3), 0.1)
    for mask in (torch.ones(2, 3) > 0, torch.tensor([[True, False, False]] * 2), torch.zeros(2, 3) > 0):
        whitened = whiten(values, mask, masked_moments(values, mask))
        assert whitened.abs().max() < 1e-6
        kept = whiten(values, mask, masked_moments(values, mask), shift_mean=False)
        torch.testing.assert_close(kept, torch.where(mask, 0.1, 0.0))


def policy_by_hand(
    log_ratio: float, advantage: float, low: float, high: float, dual: float | None
) -> tuple[float, bool]:
    ratio = math.exp(log_ratio)
    clamped = min(max(ratio, 1 - low), 1 + high)
    gain = min(ratio * advantage, clamped * advantage)
    clipped = gain != ratio * advantage
    if dual is not None and advantage < 0 and gain < dual * advantage:
        gain, clipped = dual * advantage, True
    return -gain, clipped


@given(
    seed=st.integers(0, 999),
    high=st.sampled_from([None, 0.28]),
    dual=st.sampled_from([None, 3.0]),
    per_answer=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_policy_loss_equals_the_loop(seed: int, high: float | None, dual: float | None, per_answer: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask(generator, 3, 7)
    old, new, advantages = torch.randn(3, 3, 7, dtype=torch.float64, generator=generator)
    lengths = mask.sum(dim=1)
    weights = mask * answer_weights(torch.arange(3), lengths)[:, None] if per_answer else mask.double()
    weights = torch.where(mask, weights, 0.0)
    wanted = np.zeros(5)
    for b, t in mask.nonzero().tolist():
        x = float(new[b, t] - old[b, t])
        loss, clipped = policy_by_hand(x, float(advantages[b, t]), 0.2, 0.2 if high is None else high, dual)
        weight = float(weights[b, t])  # as it is, in fp32: the terms of the loss may all but cancel
        wanted += weight * np.array([loss, clipped, math.exp(x) - 1 - x, math.exp(x), 1.0])
    nan = float("nan")
    outside = [fill_outside(each, mask, nan) for each in (new, old, advantages)]
    found = policy_loss(outside[0], outside[1], outside[2], weights, PolicyClip(0.2, high, dual))
    np.testing.assert_allclose(torch.stack(found), wanted, rtol=1e-6, atol=1e-9)


def test_the_four_corners_of_clipping() -> None:
    # ratio 2 and 1/2, advantage +1 and -1: only the move that the advantage asks for is clipped
    new = torch.log(torch.tensor([2.0, 2.0, 0.5, 0.5])).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    sums = policy_loss(new, torch.zeros(4), advantages, torch.ones(4))
    sums.loss.backward()
    assert float(sums.loss.detach()) == pytest.approx(-1.2 + 2.0 - 0.5 + 0.8)
    assert float(sums.clipped) == 2.0
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([0.0, 2.0, -0.5, 0.0])


def test_the_first_step_is_the_plain_policy_gradient() -> None:
    log_probs = torch.randn(6, dtype=torch.float64, requires_grad=True)
    advantages = torch.randn(6, dtype=torch.float64)
    sums = policy_loss(log_probs, log_probs.detach(), advantages, torch.ones(6))
    sums.loss.backward()
    assert log_probs.grad is not None
    torch.testing.assert_close(log_probs.grad, -advantages)
    assert [float(each) for each in sums[1:]] == pytest.approx([0.0, 0.0, 6.0, 6.0])


def test_log_ratios_of_a_hundred_stay_numbers_and_are_pushed_back() -> None:
    new = torch.tensor([100.0, 100.0, -100.0, -100.0], requires_grad=True)
    sums = policy_loss(new, torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.ones(4))
    sums.loss.backward()
    assert all(bool(each.isfinite()) for each in sums)
    assert new.grad is not None
    assert float(new.grad[1]) > 0  # a bad token that became likelier is made less likely, however far it went
    assert bool(new.grad.isfinite().all())


def test_no_tokens_are_no_loss_and_a_gradient_of_zero() -> None:
    new = torch.randn(2, 3, requires_grad=True)
    nothing = torch.zeros(2, 3)
    policy = policy_loss(new, new.detach(), torch.ones(2, 3), nothing)
    value = value_loss(new, new.detach(), torch.ones(2, 3), nothing, 0.4)
    (policy.loss + value.loss).backward()
    assert torch.stack(policy).tolist() == [0.0] * 5
    assert torch.stack(value).tolist() == [0.0] * 4
    assert new.grad is not None
    assert not new.grad.any()


@given(seed=st.integers(0, 999), clip=st.sampled_from([None, 0.4]))
@settings(max_examples=40, deadline=None)
def test_value_loss_equals_the_loop(seed: int, clip: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask(generator, 3, 7)
    new, old, returns = torch.randn(3, 3, 7, dtype=torch.float64, generator=generator)
    wanted = np.zeros(4)
    for b, t in mask.nonzero().tolist():
        v, o, r = float(new[b, t]), float(old[b, t]), float(returns[b, t])
        error = near = (v - r) ** 2
        if clip is not None:
            near = (min(max(v, o - clip), o + clip) - r) ** 2
        wanted += np.array([0.5 * max(error, near), near > error, error, 1.0])
    outside = [fill_outside(each, mask, float("nan")) for each in (new, old, returns)]
    found = value_loss(outside[0], outside[1], outside[2], mask, clip)
    np.testing.assert_allclose(torch.stack(found), wanted, rtol=1e-9, atol=1e-12)


def test_a_value_worked_by_hand() -> None:
    # old 0, new 1, return 2, clip 0.4: errors 1 and 1.6^2 = 2.56, of which half
    sums = value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([2.0]), torch.ones(1), 0.4)
    assert [float(each) for each in sums] == pytest.approx([1.28, 1.0, 1.0, 1.0])


def test_gradcheck() -> None:
    # no ratio or value on an edge of its clipping, where there is no derivative
    generator = torch.Generator().manual_seed(5)
    new, old, other = torch.randn(3, 12, dtype=torch.float64, generator=generator)
    new.requires_grad_()
    weights = torch.rand(12, dtype=torch.float64, generator=generator)
    clip = PolicyClip(0.2, 0.28, 3.0)
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, old, other, weights, clip).loss, new)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, other, weights, 0.4).loss, new)


def test_answers_divided_over_ranks_add_up_in_any_order() -> None:
    new, old, advantages = torch.randn(3, 4, 6, dtype=torch.float64)
    mask = torch.rand(4, 6) < 0.6
    whole = torch.stack(policy_loss(new, old, advantages, mask))
    parts = [torch.stack(policy_loss(new[i], old[i], advantages[i], mask[i])) for i in (3, 1, 0, 2)]
    torch.testing.assert_close(torch.stack(parts).sum(dim=0), whole)
    packed = torch.stack(policy_loss(new[mask], old[mask], advantages[mask], torch.ones(int(mask.sum()))))
    torch.testing.assert_close(packed, whole)


def test_both_ways_of_mixing_in_the_pretraining_loss() -> None:
    assert ptx_weights("share", 0.9) == pytest.approx((0.1, 0.9))
    assert ptx_weights("added", 27.8) == (1.0, 27.8)
    assert ptx_weights("share", 0.0) == ptx_weights("added", 0.0) == (1.0, 0.0)


def test_half_types_are_computed_in_fp32() -> None:
    half = torch.randn(4, 5).bfloat16()
    mask = torch.ones(4, 5) > 0
    assert policy_loss(half, half, half, mask).loss.dtype == torch.float32
    assert value_loss(half, half, half, mask, 0.4).loss.dtype == torch.float32
    assert gae(half, half, mask).advantages.dtype == torch.float32
    assert whiten(half, mask, masked_moments(half, mask)).dtype == torch.float32
