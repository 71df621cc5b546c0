"""Losses as pure functions: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

IGNORED = -100


def next_token_loss_sum(
    logits: torch.Tensor,
    labels: torch.Tensor,
    cross_entropy_sum: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Sum the cross-entropy of every learned token, each predicted from the position before it, in fp32.

    A sum, not a mean: the caller divides by the learned tokens of the whole global batch, so that a token weighs the
    same however ranks, micro-batches and accumulation divide the rows.

    Args:
        logits: [B, S, V], any floating dtype.
        labels: [B, S], -100 where nothing is learned; the first position of a row is never predicted.
        cross_entropy_sum: maps logits [N, V] and targets [N] to the sum of their cross-entropies, computed in fp32;
            torch's own, unless the vocabulary is divided over ranks.

    Returns:
        Scalar, in nats.
    """
    predicted = logits[:, :-1].reshape(-1, logits.shape[-1])
    wanted = labels[:, 1:].reshape(-1)
    learned = wanted != IGNORED
    # select first: the fp32 copy of the logits is the largest tensor of the step
    if cross_entropy_sum is None:
        return F.cross_entropy(predicted[learned].float(), wanted[learned], reduction="sum")
    return cross_entropy_sum(predicted[learned], wanted[learned])
