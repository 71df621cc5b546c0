"""Losses as pure functions: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

IGNORED = -100


def next_token_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    cross_entropies: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the cross-entropy of every learned token, each predicted from the position before it, in fp32.

    Args:
        logits: [B, S, V], any floating dtype.
        labels: [B, S], -100 where nothing is learned; the first position of a row is never predicted.
        cross_entropies: maps logits [N, V] and targets [N] to their cross-entropies [N], computed in fp32; torch's own,
            unless the vocabulary is divided over ranks.

    Returns:
        The losses [N] in nats, and the tokens [N] they were taken on, row after row.
    """
    predicted = logits[:, :-1].reshape(-1, logits.shape[-1])
    wanted = labels[:, 1:].reshape(-1)
    learned = wanted != IGNORED
    # select first: the fp32 copy of the logits is the largest tensor of the step
    targets = wanted[learned]
    if cross_entropies is None:
        return F.cross_entropy(predicted[learned].float(), targets, reduction="none"), targets
    return cross_entropies(predicted[learned], targets), targets


def next_token_loss_sum(
    logits: torch.Tensor,
    labels: torch.Tensor,
    cross_entropies: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Sum the losses of `next_token_losses`, whose arguments these are.

    A sum, not a mean: the caller divides by the learned tokens of the whole global batch, so that a token weighs the
    same however ranks, micro-batches and accumulation divide the rows.

    Returns:
        Scalar, in nats.
    """
    return next_token_losses(logits, labels, cross_entropies)[0].sum()
