"""Losses as pure functions: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from colossal_llama2.engine import ranks

IGNORED = -100


def next_token_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    cross_entropies: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the cross-entropy of every learned token, each predicted from the position before it, in fp32.

    Args:
        logits: [B, S, V], any floating dtype.
        labels: [B, S], -100 where nothing is learned; the first position of a row is never predicted. Where they lie on
            the host, nothing waits for the device.
        cross_entropies: maps logits [N, V] and targets [N] to their cross-entropies [N], computed in fp32; torch's own,
            unless the vocabulary is divided over ranks.

    Returns:
        The losses [N] in nats, and the tokens [N] they were taken on, row after row.
    """
    places, targets = learned_places(labels)
    if labels.device != logits.device:
        places, targets = ranks.on_device(places), ranks.on_device(targets)
    # select first: the fp32 copy of the logits is the largest tensor of the step
    predicted = logits.flatten(0, 1).index_select(0, places)
    if cross_entropies is None:
        return F.cross_entropy(predicted.float(), targets, reduction="none"), targets
    return cross_entropies(predicted, targets), targets


def learned_places(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find what predicts the learned tokens of labels [B, S].

    How many there are is a shape, for which the host must know the labels: on the device this waits for it.

    Returns:
        The places [N] in the flattened B * S from which they are predicted, and the tokens [N].
    """
    wanted = labels[:, 1:]
    rows, columns = (wanted != IGNORED).nonzero(as_tuple=True)
    return rows * labels.shape[1] + columns, wanted[rows, columns]


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
