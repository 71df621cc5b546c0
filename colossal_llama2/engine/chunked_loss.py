"""Cross-entropy from hidden states and the output head, without ever holding the logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

MOST_LOGITS_BYTES = 256 << 20
"""Logits in fp32 that may be held at a time; below that they are held for the backward pass, which saves a product."""


class HeadPlace(NamedTuple):
    """Which rows of the head this rank holds.

    Attributes:
        first_row: number of its first one in the whole vocabulary.
        group: the ranks that hold the others; None where there are none.
    """

    first_row: int = 0
    group: Any = None


def linear_cross_entropies(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    place: HeadPlace = HeadPlace(),  # noqa: B008 (a named tuple does not change)
    most_bytes: int = MOST_LOGITS_BYTES,
) -> torch.Tensor:
    """Take the cross-entropy of ``hidden @ weight.T`` for every token, some hundred tokens at a time.

    loss = log(sum(exp(x))) - x[target], x in fp32. What is kept for the backward pass is the hidden states and a
    logarithm a token; the logits are computed again there, which costs a third of the head's arithmetic. Their
    gradient is p - onehot(target), its product with the hidden states is added up in fp32 over all chunks. The idea is
    that of Liger-Kernel's fused linear cross-entropy (Hsu et al., arXiv 2410.10989), which reduces to one number and
    so can take the gradient in the forward pass; here the losses stay apart.

    Args:
        hidden: [N, D].
        weight: [V, D], the head, or this rank's rows of it.
        targets: [N] int64, numbers in the whole vocabulary.
        place: which rows those are.
        most_bytes: how much memory the logits of a chunk may take.

    Returns:
        [N] in nats, fp32 (float64 for float64), the same on every rank of the group.
    """
    if place.group is None and hidden.shape[0] * weight.shape[0] * 4 <= most_bytes:
        return F.cross_entropy(_exact(F.linear(hidden, weight)), targets, reduction="none")
    rows = max(1, most_bytes // (4 * weight.shape[0]))
    result: torch.Tensor = _LinearCrossEntropies.apply(hidden, weight, targets, place, rows)
    return result


class _LinearCrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, place: HeadPlace, rows: int
    ) -> torch.Tensor:
        losses = hidden.new_empty(len(hidden), dtype=_exact(hidden[:0]).dtype)
        normalizers = torch.empty_like(losses)
        for begin in range(0, len(hidden), rows):
            chunk = slice(begin, begin + rows)
            scores = _exact(hidden[chunk] @ weight.T)
            local, here = _local(targets[chunk], weight, place)
            of_target = scores.gather(-1, local[:, None])[:, 0]
            if place.group is None:
                normalizers[chunk] = scores.logsumexp(dim=-1)
            else:
                normalizers[chunk] = _logsumexp_over(scores, place.group)
                of_target = of_target.where(here, 0.0)
                dist.all_reduce(of_target, group=place.group)
            losses[chunk] = normalizers[chunk] - of_target
        ctx.save_for_backward(hidden, weight, targets, normalizers)
        ctx.place, ctx.rows = place, rows
        return losses

    @staticmethod
    def backward(
        ctx: Any, grad_output: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None]:
        hidden, weight, targets, normalizers = ctx.saved_tensors
        place: HeadPlace = ctx.place
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=normalizers.dtype) if ctx.needs_input_grad[1] else None
        for begin in range(0, len(hidden), ctx.rows):
            chunk = slice(begin, begin + ctx.rows)
            scores = _exact(hidden[chunk] @ weight.T)
            gradient = scores.sub_(normalizers[chunk, None]).exp_()
            local, here = _local(targets[chunk], weight, place)
            gradient.scatter_add_(-1, local[:, None], -here.to(gradient.dtype)[:, None])
            gradient = gradient.mul_(grad_output[chunk, None]).to(hidden.dtype)
            if of_hidden is not None:
                of_hidden[chunk] = gradient @ weight
            if of_weight is not None:
                of_weight += gradient.T @ hidden[chunk]
        if of_hidden is not None and place.group is not None:
            dist.all_reduce(of_hidden, group=place.group)
        return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None, None, None


def _exact(scores: torch.Tensor) -> torch.Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _local(targets: torch.Tensor, weight: torch.Tensor, place: HeadPlace) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the targets' rows of this rank, 0 where they lie on another, and whether they lie here."""
    local = targets - place.first_row
    here = (local >= 0) & (local < len(weight))
    return local.where(here, 0), here


def _logsumexp_over(scores: torch.Tensor, group: Any) -> torch.Tensor:
    """Take the logarithm of the sum over all ranks' columns."""
    largest = scores.max(dim=-1).values
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    sums = (scores - largest[:, None]).exp_().sum(dim=-1)
    dist.all_reduce(sums, group=group)
    return sums.log() + largest
