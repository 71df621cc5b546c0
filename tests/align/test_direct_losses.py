"""DPO, IPO, SimPO, ORPO and KTO against float64 loops and worked cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.align.direct_losses import DpoKind, Pairs, dpo, kto, kto_reference_point, orpo, simpo
from colossal_llama2.align.log_probs import SequenceLogProbs
from colossal_llama2.align.reward_losses import sum_pairs

KINDS: list[tuple[DpoKind, float]] = [("sigmoid", 0.0), ("sigmoid", 0.1), ("ipo", 0.0)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def random_pairs(seed: int, num: int = 5) -> Pairs:
    rng = np.random.default_rng(seed)
    lengths = torch.tensor(rng.integers(1, 9, size=(2, num)))
    sums = torch.tensor(-np.abs(rng.normal(size=(2, num)))) * lengths
    return Pairs(sums[0], sums[1], lengths[0], lengths[1])


def pair(chosen: float, rejected: float, lengths: tuple[int, int] = (1, 1)) -> Pairs:
    sums = torch.tensor([[chosen], [rejected]], dtype=torch.float64)
    return Pairs(sums[0], sums[1], torch.tensor([lengths[0]]), torch.tensor([lengths[1]]))


@given(seed=st.integers(0, 999), how=st.sampled_from(KINDS), beta=st.sampled_from([0.1, 0.5]))
@settings(max_examples=60, deadline=None)
def test_dpo_equals_the_loop(seed: int, how: tuple[DpoKind, float], beta: float) -> None:
    kind, smoothing = how
    policy, reference = random_pairs(seed), random_pairs(seed + 1)
    found = dpo(policy, reference, beta, kind, smoothing)
    for i in range(5):
        chosen = float(policy.chosen[i] - reference.chosen[i])
        rejected = float(policy.rejected[i] - reference.rejected[i])
        h = chosen - rejected
        if kind == "ipo":
            wanted = (h - 1 / (2 * beta)) ** 2
        else:
            wanted = -(1 - smoothing) * math.log(sigmoid(beta * h)) - smoothing * math.log(1 - sigmoid(beta * h))
        assert float(found.losses[i]) == pytest.approx(wanted, rel=1e-9)
        assert float(found.chosen_rewards[i]) == pytest.approx(beta * chosen)
        assert float(found.rejected_rewards[i]) == pytest.approx(beta * rejected)


def test_dpo_worked_by_hand() -> None:
    # chosen rose by 2, rejected fell by 1, beta 1/3: log(1 + e^-1); IPO: (3 - 1.5)^2
    policy, reference = pair(-4.0, -6.0), pair(-6.0, -5.0)
    found = dpo(policy, reference, 1 / 3)
    assert float(found.losses) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(dpo(policy, reference, 1 / 3, "ipo").losses) == pytest.approx(2.25)
    assert [float(found.chosen_rewards), float(found.rejected_rewards)] == pytest.approx([2 / 3, -1 / 3])


def test_dpo_starts_at_log_two_and_ipo_has_its_minimum_where_the_paper_says() -> None:
    policy = random_pairs(0)
    assert dpo(policy, policy, 0.1).losses.tolist() == pytest.approx([math.log(2)] * 5)
    at_best = policy._replace(chosen=policy.chosen + 1 / (2 * 0.1))
    assert dpo(at_best, policy, 0.1, "ipo").losses.tolist() == pytest.approx([0.0] * 5, abs=1e-12)


def test_the_reference_learns_nothing() -> None:
    reference = pair(-2.0, -1.0)
    reference.chosen.requires_grad_()
    policy = pair(-2.0, -1.5)
    policy.chosen.requires_grad_()
    dpo(policy, reference, 0.1).losses.sum().backward()
    assert policy.chosen.grad is not None
    assert reference.chosen.grad is None


@given(seed=st.integers(0, 999), beta=st.sampled_from([2.0, 2.5]), gamma=st.sampled_from([0.0, 1.4]))
@settings(max_examples=40, deadline=None)
def test_simpo_equals_the_loop(seed: int, beta: float, gamma: float) -> None:
    policy = random_pairs(seed)
    found = simpo(policy, beta, gamma)
    for i in range(5):
        chosen = beta / int(policy.chosen_lengths[i]) * float(policy.chosen[i])
        rejected = beta / int(policy.rejected_lengths[i]) * float(policy.rejected[i])
        assert float(found.losses[i]) == pytest.approx(-math.log(sigmoid(chosen - rejected - gamma)), rel=1e-9)
        assert float(found.chosen_rewards[i]) == pytest.approx(chosen)
        assert float(found.rejected_rewards[i]) == pytest.approx(rejected)


def test_simpo_worked_by_hand() -> None:
    # means -1 and -2, beta 2, gamma 1: sigmoid of 2 - 1
    found = simpo(pair(-4.0, -4.0, (4, 2)), beta=2.0, gamma=1.0)
    assert float(found.losses) == pytest.approx(math.log(1 + math.exp(-1)))


@given(seed=st.integers(0, 999), lam=st.sampled_from([0.1, 1.0]))
@settings(max_examples=40, deadline=None)
def test_orpo_equals_the_loop(seed: int, lam: float) -> None:
    policy = random_pairs(seed)
    found = orpo(policy, lam)
    for i in range(5):
        p_w = math.exp(float(policy.chosen[i]) / int(policy.chosen_lengths[i]))
        p_l = math.exp(float(policy.rejected[i]) / int(policy.rejected_lengths[i]))
        log_odds_ratio = math.log((p_w / (1 - p_w)) / (p_l / (1 - p_l)))
        odds_ratio = -math.log(sigmoid(log_odds_ratio))
        assert float(found.nll[i]) == pytest.approx(-math.log(p_w), rel=1e-9)
        assert float(found.odds_ratio[i]) == pytest.approx(odds_ratio, rel=1e-7)
        assert float(found.losses[i]) == pytest.approx(-math.log(p_w) + lam * odds_ratio, rel=1e-7)


def test_orpo_worked_by_hand() -> None:
    # probabilities 3/4 and 1/2: odds 3 and 1, sigmoid(ln 3) = 3/4
    found = orpo(pair(2 * math.log(3 / 4), 3 * math.log(1 / 2), (2, 3)), lam=0.1)
    assert float(found.odds_ratio) == pytest.approx(-math.log(3 / 4))
    assert float(found.losses) == pytest.approx(-1.1 * math.log(3 / 4))


def test_orpo_of_certain_and_of_impossible_answers_stays_a_number() -> None:
    for dtype in (torch.float32, torch.float64):
        chosen = torch.tensor([0.0, -100.0, -1e-9, -1e4], dtype=dtype, requires_grad=True)
        rejected = torch.tensor([-100.0, 0.0, -1e-9, -1e4], dtype=dtype, requires_grad=True)
        ones = torch.ones(4, dtype=torch.long)
        found = orpo(Pairs(chosen, rejected, ones, ones), 1.0)
        found.losses.sum().backward()
        assert bool(found.losses.isfinite().all())
        assert chosen.grad is not None
        assert rejected.grad is not None
        assert bool(chosen.grad.isfinite().all())
        assert bool(rejected.grad.isfinite().all())
        assert float(found.odds_ratio[2]) == pytest.approx(math.log(2))


@given(seed=st.integers(0, 999), beta=st.sampled_from([0.1, 0.5]))
@settings(max_examples=40, deadline=None)
def test_kto_equals_the_loop(seed: int, beta: float) -> None:
    rng = np.random.default_rng(seed)
    policy, reference, mismatched = torch.tensor(rng.normal(size=(3, 7)) * 10)
    desirable = torch.tensor(rng.random(7) < 0.5)
    z = max(0.0, float(np.mean(mismatched.numpy())))
    point = kto_reference_point(mismatched.sum(), torch.tensor(7))
    found = kto(policy, reference, desirable, point, beta, (1.0, 1.3))
    for i in range(7):
        r = float(policy[i] - reference[i])
        if desirable[i]:
            wanted, correct = 1.0 * (1 - sigmoid(beta * (r - z))), r > z
        else:
            wanted, correct = 1.3 * (1 - sigmoid(beta * (z - r))), r < z
        assert float(found.losses[i]) == pytest.approx(wanted, rel=1e-9)
        assert float(found.rewards[i]) == pytest.approx(beta * r)
        assert bool(found.correct[i]) == correct


def test_kto_worked_by_hand() -> None:
    # z0 = 2 of ratios 1 and 3; beta 1/2, ratio 4: sigmoid(-1) if good, sigmoid(1) if bad
    point = kto_reference_point(torch.tensor(4.0), torch.tensor(2))
    policy, reference = torch.tensor([-1.0, -1.0]), torch.tensor([-5.0, -5.0])
    found = kto(policy, reference, torch.tensor([True, False]), point, 0.5)
    assert found.losses.tolist() == pytest.approx([sigmoid(-1), sigmoid(1)])
    assert found.correct.tolist() == [True, False]
    assert float(kto_reference_point(torch.tensor(-4.0), torch.tensor(2))) == 0.0
    assert float(kto_reference_point(torch.tensor(0.0), torch.tensor(0))) == 0.0


def test_kto_of_only_one_kind_or_of_nothing() -> None:
    policy = torch.zeros(2, requires_grad=True)
    for desirable in (True, False):
        found = kto(policy, torch.zeros(2), torch.tensor([desirable] * 2), torch.tensor(0.0), 0.1)
        assert found.losses.tolist() == pytest.approx([0.5, 0.5])
    assert kto(policy[:0], torch.zeros(0), torch.zeros(0) > 0, torch.tensor(0.0), 0.1).losses.shape == (0,)


def test_gradcheck() -> None:
    lengths = torch.tensor([2, 3, 1])
    reference = random_pairs(3, 3)
    sums = -torch.rand(2, 3, dtype=torch.float64) * 5 - 0.1
    sums.requires_grad_()

    def pairs(x: torch.Tensor) -> Pairs:
        return Pairs(x[0], x[1], lengths, lengths)

    for kind, smoothing in KINDS:
        assert torch.autograd.gradcheck(
            lambda x, kind=kind, eps=smoothing: dpo(pairs(x), reference, 0.3, kind, eps).losses, sums
        )
    assert torch.autograd.gradcheck(lambda x: simpo(pairs(x), 2.0, 0.5).losses, sums)
    assert torch.autograd.gradcheck(lambda x: orpo(pairs(x), 0.5).losses, sums)
    desirable, point = torch.tensor([True, False, True]), torch.tensor(0.4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: kto(x[0], reference.chosen, desirable, point, 0.3).losses, sums)


@pytest.mark.parametrize("far", [100.0, 1e4])
def test_log_ratios_of_a_hundred_and_more_stay_numbers(far: float) -> None:
    chosen = torch.tensor([-1.0, -far], requires_grad=True)
    policy = Pairs(chosen, torch.tensor([-far, -1.0]), torch.tensor([3, 3]), torch.tensor([3, 3]))
    reference = Pairs(torch.tensor([-far, -1.0]), torch.tensor([-1.0, -far]), *policy[2:])
    losses = [
        dpo(policy, reference, 0.5).losses,
        dpo(policy, reference, 0.5, "ipo").losses,
        simpo(policy, 2.5, 0.5).losses,
        orpo(policy, 0.1).losses,
        kto(policy.chosen, reference.chosen, torch.tensor([True, True]), torch.tensor(0.0), 0.5).losses,
    ]
    torch.stack([each.sum() for each in losses]).sum().backward()
    assert all(bool(each.isfinite().all()) for each in losses)
    assert chosen.grad is not None
    assert bool(chosen.grad.isfinite().all())


def test_pairs_are_picked_out_of_sequences_and_their_sums_hold_the_accuracy() -> None:
    sequences = SequenceLogProbs(torch.tensor([-1.0, -6.0, 0.0, -3.0, -8.0]), torch.tensor([1, 3, 0, 2, 4]))
    pairs = Pairs.of(sequences, torch.tensor([0, 3]), torch.tensor([1, 4]))
    assert pairs.chosen.tolist() == [-1.0, -3.0]
    assert pairs.rejected_lengths.tolist() == [3, 4]
    assert pairs.per_token().rejected.tolist() == [-2.0, -2.0]
    empty = Pairs.of(sequences, torch.tensor([2]), torch.tensor([2])).per_token()
    assert empty.chosen.tolist() == [0.0]
    found = simpo(pairs, 1.0, 0.0)
    sums = sum_pairs(*found)
    assert [float(sums.correct), float(sums.margin), float(sums.weight)] == pytest.approx([2.0, 1.5, 2.0])


def test_half_types_are_computed_in_fp32() -> None:
    lengths = torch.ones(3)
    policy = Pairs(torch.randn(3).bfloat16() - 3, torch.randn(3).bfloat16() - 3, lengths, lengths)
    desirable = torch.tensor([True, False, True])
    assert dpo(policy, policy, 0.1).losses.dtype == torch.float32
    assert simpo(policy, 2.0, 0.5).losses.dtype == torch.float32
    assert orpo(policy, 0.1).losses.dtype == torch.float32
    assert kto(policy.chosen, policy.rejected, desirable, torch.tensor(0.0), 0.1).losses.dtype == torch.float32
