"""Drawing tokens: pure functions over one step's logits, and the numbers that decide a draw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


def uniform_numbers(count: int, *keys: int) -> npt.NDArray[np.float64]:
    """Return numbers in [0, 1) that depend on the keys alone, on any machine and version.

    They are the raw bits of PCG64, which numpy promises never to change.

    Args:
        count: how many; a larger count begins with the numbers of a smaller one.
        keys: 0 or more each.

    Returns:
        [count] fp64, the largest 1 - 2**-52, so that a draw never falls behind the last token.
    """
    bits = np.random.PCG64(np.random.SeedSequence(keys)).random_raw(count)
    return (bits >> np.uint64(12)).astype(np.float64) * 2.0**-52


def draw(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token a row from softmax(logits / temperature) by inverting its cumulative distribution.

    One number decides a token: rows that share a batch, or ranks that divide the prompts, do not change what is drawn.

    Args:
        logits: [B, V], any floating dtype; -inf where there is no token.
        uniforms: [B] fp64 in [0, 1).
        temperature: above 0.

    Returns:
        The tokens [B] int64, and their log-probabilities [B] fp32 in nats under the distribution they were drawn from.
    """
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)
    cumulative = log_probs.double().exp_().cumsum(-1)
    thresholds = uniforms[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, thresholds, right=True).clamp_(max=logits.shape[-1] - 1)
    return tokens[:, 0], log_probs.gather(-1, tokens)[:, 0]
