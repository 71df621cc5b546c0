"""How far the policy is from the reference, estimated from the tokens it sampled."""

from __future__ import annotations

from typing import Literal

import torch

from colossal_llama2.align.chunks import at_least_fp32

KlEstimator = Literal["k1", "k2", "k3"]

LARGEST_EXPONENT = 20.0
"""Log-ratios are exponentiated as they are up to here: e^20 is 485 million, far past any ratio worth learning from."""


def bounded_exp(log_ratio: torch.Tensor) -> torch.Tensor:
    """Take exp(x) up to x = 20, and beyond it follow the tangent there: e^20 (1 + x - 20).

    Equal to exp wherever a ratio means anything, and finite with a gradient of the right sign where a token has
    become e^100 times as probable: clamping x would turn its gradient to zero, and clamping x in one term of k3 only
    would turn its sign. Any floating shape.
    """
    return log_ratio.clamp(max=LARGEST_EXPONENT).exp() * (1.0 + (log_ratio - LARGEST_EXPONENT).clamp(min=0.0))


def kl_estimates(log_probs: torch.Tensor, ref_log_probs: torch.Tensor, kind: KlEstimator = "k1") -> torch.Tensor:
    """Estimate KL(policy || reference) from tokens that the policy sampled (Schulman, "Approximating KL divergence").

    With log r = log p_ref - log p_policy:  k1 = -log r (unbiased, may be negative);  k2 = (log r)^2 / 2 (biased, low
    variance);  k3 = r - 1 - log r (unbiased, never negative).

    Args:
        log_probs: any shape, of the policy that sampled, for the tokens sampled.
        ref_log_probs: the same shape, of the frozen reference.
        kind: k1, k2 or k3.

    Returns:
        The same shape, in nats, fp32, with gradient to both. k3 uses `bounded_exp`.
    """
    log_ratio = at_least_fp32(ref_log_probs) - at_least_fp32(log_probs)
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    # expm1 where exp(x) - 1 would lose its digits
    excess = torch.expm1(log_ratio.clamp(max=1.0)).where(log_ratio < 1.0, bounded_exp(log_ratio) - 1.0)
    return excess - log_ratio
