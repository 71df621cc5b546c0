"""FusedAdamW against torch's own AdamW, bit for bit, and its handling of scaled gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from colossal_llama2.engine.adam import FusedAdamW

SHAPES = ((33, 17), (5,), (64, 48))


def parameters(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(left: list[nn.Parameter], right: list[nn.Parameter], scale: float = 1.0) -> None:
    for a, b in zip(left, right, strict=True):
        gradient = torch.randn_like(a)
        a.grad, b.grad = gradient * scale, gradient.clone()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_torch_fused_adamw_bit_for_bit(weight_decay: float) -> None:
    torch.manual_seed(0)
    ours, theirs = parameters(1), parameters(1)
    our_optimizer = FusedAdamW(ours, lr=1e-2, betas=(0.9, 0.95), weight_decay=weight_decay)
    their_optimizer = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)
    before = [p.detach().clone() for p in ours]
    for _ in range(50):
        give_gradients(ours, theirs)
        our_optimizer.step()
        their_optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(ours, before, strict=True))


def test_agrees_with_the_formula_in_float64() -> None:
    """One parameter, written out: m, v, their bias corrections, decoupled decay."""
    torch.manual_seed(0)
    lr, beta1, beta2, eps, decay = 1e-2, 0.9, 0.95, 1e-8, 0.1
    parameter = nn.Parameter(torch.randn(40))
    value = parameter.detach().double()
    m, v = torch.zeros_like(value), torch.zeros_like(value)
    optimizer = FusedAdamW([parameter], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    for step in range(1, 21):
        gradient = torch.randn(40)
        parameter.grad = gradient.clone()
        optimizer.step()
        g = gradient.double()
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
        value = value * (1 - lr * decay) - lr * m_hat / (v_hat.sqrt() + eps)
    torch.testing.assert_close(parameter.detach().double(), value, rtol=1e-5, atol=1e-6)


def test_scaled_gradients_give_the_unscaled_step_and_are_left_alone() -> None:
    torch.manual_seed(0)
    scaled, plain = parameters(2), parameters(2)
    scaled_optimizer, plain_optimizer = FusedAdamW(scaled, lr=1e-2), FusedAdamW(plain, lr=1e-2)
    for _ in range(5):
        give_gradients(scaled, plain, scale=256.0)
        kept = [p.grad.clone() for p in scaled if p.grad is not None]
        scaled_optimizer.step(div_scale=256.0)
        plain_optimizer.step()
        assert len(kept) == len(scaled)
        assert all(torch.equal(p.grad, k) for p, k in zip(scaled, kept, strict=True) if p.grad is not None)
    assert all(torch.equal(a, b) for a, b in zip(scaled, plain, strict=True))


def test_a_parameter_without_gradient_is_not_touched() -> None:
    used, unused = parameters(3)[:2]
    before = unused.detach().clone()
    optimizer = FusedAdamW([used, unused], lr=1e-2, weight_decay=0.5)
    used.grad = torch.ones_like(used)
    optimizer.step()
    assert torch.equal(unused, before)
    assert unused not in optimizer.state
