"""The three estimators against the exact KL of small distributions, and where exponentials would overflow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from colossal_llama2.align.kl_estimates import KlEstimator, bounded_exp, kl_estimates

KINDS: list[KlEstimator] = ["k1", "k2", "k3"]


def by_hand(policy: float, reference: float, kind: KlEstimator) -> float:
    r = math.exp(reference) / math.exp(policy)
    return {"k1": -math.log(r), "k2": 0.5 * math.log(r) ** 2, "k3": r - 1 - math.log(r)}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_loop(kind: KlEstimator) -> None:
    rng = np.random.default_rng(0)
    policy, reference = -np.abs(rng.normal(size=(2, 50)) * 3)
    found = kl_estimates(torch.tensor(policy), torch.tensor(reference), kind)
    np.testing.assert_allclose(found, [by_hand(p, r, kind) for p, r in zip(policy, reference, strict=True)], rtol=1e-12)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_their_expectation_under_the_policy_is_the_kl(kind: KlEstimator) -> None:
    p = torch.softmax(torch.randn(9, dtype=torch.float64), dim=0)
    q = torch.softmax(torch.randn(9, dtype=torch.float64), dim=0)
    exact = float((p * (p.log() - q.log())).sum())
    assert float((p * kl_estimates(p.log(), q.log(), kind)).sum()) == pytest.approx(exact, rel=1e-12)


def test_the_log_ratio_the_wrong_way_round_is_not_the_kl() -> None:
    # exp(x) - 1 - x with x = log p - log q, which ColossalChat logs as its KL: another number altogether
    p = torch.tensor([0.9, 0.1], dtype=torch.float64)
    q = torch.tensor([0.5, 0.5], dtype=torch.float64)
    exact = float((p * (p.log() - q.log())).sum())
    x = p.log() - q.log()
    assert exact == pytest.approx(0.368064, abs=1e-6)
    assert float((p * (x.exp() - 1 - x)).sum()) == pytest.approx(0.271936, abs=1e-6)


def test_a_case_worked_by_hand() -> None:
    # p = 1/2, p_ref = 1/4: log r = -ln 2
    p, reference = torch.log(torch.tensor([0.5, 0.25], dtype=torch.float64))
    ln2 = math.log(2)
    found = [float(kl_estimates(p, reference, kind)) for kind in KINDS]
    assert found == pytest.approx([ln2, ln2**2 / 2, 0.5 - 1 + ln2])


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: KlEstimator) -> None:
    policy, reference = torch.randn(2, 20, dtype=torch.float64) * 3
    assert torch.autograd.gradcheck(
        lambda p, r: kl_estimates(p, r, kind), (policy.requires_grad_(), reference.requires_grad_())
    )
    far = policy.detach() + 25.0  # where the exponential follows its tangent
    assert torch.autograd.gradcheck(lambda p: kl_estimates(p, far, kind), (policy,))


def test_small_differences_keep_their_digits_in_fp32() -> None:
    policy = torch.tensor([-1.0])
    k3 = kl_estimates(policy, policy + 2.0**-12, "k3")
    assert float(k3) == pytest.approx(2.0**-25, rel=1e-2)


def test_log_ratios_of_a_hundred_are_finite_and_their_gradients_point_the_right_way() -> None:
    for far in (100.0, 1000.0):
        policy = torch.tensor([-far, -1.0], requires_grad=True)
        k3 = kl_estimates(policy, torch.tensor([-1.0, -far]), "k3")
        k3.sum().backward()
        assert bool(k3.isfinite().all())
        assert policy.grad is not None
        assert bool(policy.grad.isfinite().all())
        # the reference finds the first token likelier: a smaller KL wants it likelier too, and the second less likely
        assert float(policy.grad[0]) < 0 < float(policy.grad[1])


def test_the_exponential_is_bent_beyond_twenty_only() -> None:
    x = torch.tensor([-200.0, -1.0, 0.0, 19.5, 20.0], dtype=torch.float64)
    assert torch.equal(bounded_exp(x), x.exp())
    assert float(bounded_exp(torch.tensor(100.0, dtype=torch.float64))) == pytest.approx(math.exp(20) * 81)
    around = torch.tensor([19.9, 20.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bounded_exp, around)


def test_half_types_are_computed_in_fp32() -> None:
    policy = torch.tensor([-3.0], dtype=torch.bfloat16)
    assert kl_estimates(policy, policy, "k3").dtype == torch.float32
