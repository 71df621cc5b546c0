"""Losses over packed rows: which positions predict which tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from colossal_llama2.engine import ranks
from colossal_llama2.engine.heads import CrossEntropies, summed

IGNORED = -100


class NextTokens(NamedTuple):
    """What predicting the learned tokens of packed rows gives.

    Attributes:
        loss_sum: scalar, in nats. A sum, not a mean: the caller divides by the learned tokens of the whole global
            batch, so that a token weighs the same however ranks, micro-batches and accumulation divide the rows.
        losses: [N] in nats, row after row, without a gradient.
        targets: [N], the tokens that they were taken on.
    """

    loss_sum: torch.Tensor
    losses: torch.Tensor
    targets: torch.Tensor


def next_token_losses(
    logits: torch.Tensor, labels: torch.Tensor, cross_entropies: CrossEntropies | None = None
) -> NextTokens:
    """Take the cross-entropy of every learned token, each predicted from the position before it, in fp32.

    Args:
        logits: [B, S, V], any floating dtype.
        labels: [B, S], -100 where nothing is learned; the first position of a row is never predicted. Where they lie on
            the host, nothing waits for the device.
        cross_entropies: maps logits [N, V] and targets [N] to their cross-entropies [N], computed in fp32; torch's own,
            unless the vocabulary is divided over ranks.
    """
    places, targets = learned_places(labels)
    if labels.device != logits.device:
        places, targets = ranks.on_device(places), ranks.on_device(targets)
    # select first: the fp32 copy of the logits is the largest tensor of the step
    predicted = logits.flatten(0, 1).index_select(0, places)
    return NextTokens(*summed(cross_entropies or _of_whole_logits, predicted, targets), targets)


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
    logits: torch.Tensor, labels: torch.Tensor, cross_entropies: CrossEntropies | None = None
) -> torch.Tensor:
    """Return `NextTokens.loss_sum` alone; arguments as in `next_token_losses`."""
    return next_token_losses(logits, labels, cross_entropies).loss_sum


def _of_whole_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="none")
