"""The pairwise losses against float64 loops, worked cases and each other."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.align.reward_losses import (
    PAIRWISE_LOSSES,
    PairwiseLoss,
    log_exp_losses,
    log_sig_losses,
    ranked_pairs,
    reward_sums,
)

KINDS: list[PairwiseLoss] = ["log_sig", "log_exp"]


@given(seed=st.integers(0, 9999), kind=st.sampled_from(KINDS), margin=st.sampled_from([0.0, 0.7]))
@settings(max_examples=60, deadline=None)
def test_equals_the_loop(seed: int, kind: PairwiseLoss, margin: float) -> None:
    rng = np.random.default_rng(seed)
    chosen, rejected, weights = rng.normal(size=(3, 6)) * 4
    weights = np.abs(weights)
    wanted = np.zeros(6)
    for c, r, w in zip(chosen, rejected, weights, strict=True):
        loss = -math.log(1 / (1 + math.exp(-(c - r - margin))))
        wanted += w * np.array([loss, c > r, c - r, c, r, 1.0])
    sums = reward_sums(torch.tensor(chosen), torch.tensor(rejected), kind, torch.tensor(weights), margin)
    np.testing.assert_allclose(torch.stack(sums), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_worked_by_hand(kind: PairwiseLoss) -> None:
    # margins 0 and ln 3: ln 2 and ln(4/3)
    sums = reward_sums(torch.tensor([1.0, math.log(3)]), torch.tensor([1.0, 0.0]), kind)
    assert float(sums.loss) == pytest.approx(math.log(2) + math.log(4 / 3), rel=1e-6)
    assert float(sums.correct) == 1.0  # a tie counts as wrong
    assert float(sums.weight) == 2.0


@pytest.mark.parametrize("kind", KINDS)
def test_far_apart_scores_give_finite_losses_and_gradients_in_every_dtype(kind: PairwiseLoss) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        chosen = torch.tensor([1000.0, -1000.0, 0.0], dtype=dtype, requires_grad=True)
        losses = PAIRWISE_LOSSES[kind](chosen, torch.tensor([-1000.0, 1000.0, 0.0], dtype=dtype))
        assert losses.tolist() == pytest.approx([0.0, 2000.0, math.log(2)])
        losses.sum().backward()
        assert chosen.grad is not None
        assert chosen.grad.tolist() == pytest.approx([0.0, -1.0, -0.5])


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: PairwiseLoss) -> None:
    scores = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: PAIRWISE_LOSSES[kind](x[0], x[1], 0.3), scores)


def test_the_two_names_are_one_loss() -> None:
    chosen, rejected = torch.randn(2, 200, dtype=torch.float64) * 10
    torch.testing.assert_close(log_sig_losses(chosen, rejected), log_exp_losses(chosen, rejected), rtol=1e-12, atol=0)


@given(seed=st.integers(0, 9999))
@settings(max_examples=60, deadline=None)
def test_every_pair_of_unequal_rank_of_one_prompt_is_listed_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ranks, prompts = rng.integers(1, 4, size=9), rng.integers(0, 4, size=9)
    wanted = {
        (i, j) for i, j in itertools.product(range(9), repeat=2) if prompts[i] == prompts[j] and ranks[i] < ranks[j]
    }
    pairs = ranked_pairs(torch.tensor(ranks), torch.tensor(prompts))
    found = list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True))
    assert len(found) == len(wanted)
    assert set(found) == wanted
    of_prompt: dict[int, float] = {}
    for (i, _), weight in zip(found, pairs.weights.tolist(), strict=True):
        of_prompt[prompts[i]] = of_prompt.get(prompts[i], 0.0) + weight
    assert all(total == pytest.approx(1.0) for total in of_prompt.values())


def test_four_ranked_responses_are_six_pairs_of_one_sixth() -> None:
    pairs = ranked_pairs(torch.tensor([2, 1, 4, 3]), torch.tensor([5, 5, 5, 5]))
    found = sorted(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True))
    assert found == [(0, 2), (0, 3), (1, 0), (1, 2), (1, 3), (3, 2)]
    assert pairs.weights.tolist() == pytest.approx([1 / 6] * 6)


def test_equal_ranks_make_no_pair() -> None:
    pairs = ranked_pairs(torch.tensor([1, 1, 1]), torch.tensor([0, 0, 0]))
    sums = reward_sums(torch.zeros(3)[pairs.chosen], torch.zeros(3)[pairs.rejected], weights=pairs.weights)
    assert torch.stack(sums).tolist() == [0.0] * 6


def test_prompts_divided_over_ranks_add_up_in_any_order() -> None:
    scores, ranks = torch.randn(12, dtype=torch.float64), torch.randint(1, 4, (12,))
    prompts = torch.arange(12) // 3

    def of(taken: torch.Tensor) -> torch.Tensor:
        pairs = ranked_pairs(ranks[taken], prompts[taken])
        mine = scores[taken]
        return torch.stack(reward_sums(mine[pairs.chosen], mine[pairs.rejected], weights=pairs.weights))

    whole = of(torch.arange(12))
    torch.testing.assert_close(of(torch.arange(6)) + of(torch.arange(6, 12)), whole)
    torch.testing.assert_close(of(torch.randperm(12)), whole)
