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


WHOLE = HeadPlace()


def linear_cross_entropies(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    place: HeadPlace = WHOLE,
    most_bytes: int = MOST_LOGITS_BYTES,
) -> torch.Tensor:
    """Take the cross-entropy of ``hidden @ weight.T`` for every token, some hundred tokens at a time.

    loss = log(sum(exp(x))) - x[target], x in fp32. What is kept for the backward pass is the hidden states and a
    logarithm a token; the logits are computed again there, which costs a third of the head's arithmetic. Their
    gradient is p - onehot(target), its product with the hidden states is added up in fp32 over all chunks. Here the
    losses stay apart, and each may get a gradient of its own; whoever wants their sum alone takes
    `summed_loss.summed_cross_entropies`, which computes nothing twice.

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
        return F.cross_entropy(exact(F.linear(hidden, weight)), targets, reduction="none")
    rows = rows_within(most_bytes, len(weight))
    result: torch.Tensor = _LinearCrossEntropies.apply(hidden, weight, targets, place, rows)
    return result


class _LinearCrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, place: HeadPlace, rows: int
    ) -> torch.Tensor:
        losses = hidden.new_empty(len(hidden), dtype=exact(hidden[:0]).dtype)
        normalizers = torch.empty_like(losses)
        for begin in range(0, len(hidden), rows):
            chunk = slice(begin, begin + rows)
            of_target = targets[chunk], len(weight), place
            losses[chunk], sums, largest = exponentiate(exact(hidden[chunk] @ weight.T), *of_target)
            normalizers[chunk] = sums.log_().add_(largest)
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
            gradient = exact(hidden[chunk] @ weight.T).sub_(normalizers[chunk, None]).exp_()
            local, here = local_rows(targets[chunk], len(weight), place)
            gradient.scatter_add_(-1, local[:, None], -here.to(gradient.dtype)[:, None])
            gradient = gradient.mul_(grad_output[chunk, None]).to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(gradient, weight, out=of_hidden[chunk])
            if of_weight is not None:
                add_product(of_weight, gradient, hidden[chunk])
        if of_hidden is not None and place.group is not None:
            dist.all_reduce(of_hidden, group=place.group)
        return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None, None, None


def rows_within(most_bytes: int, vocabulary: int) -> int:
    """Return how many tokens' logits in fp32 fit, at least one."""
    return max(1, most_bytes // (4 * vocabulary))


def exact(scores: torch.Tensor) -> torch.Tensor:
    """Return scores in fp32, or in float64 if they are that."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def exponentiate(
    scores: torch.Tensor, targets: torch.Tensor, vocabulary: int, place: HeadPlace
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take the losses of scores, which are overwritten with exp(score - the token's largest).

    Args:
        scores: [N, V / ranks], in fp32 at least; their memory is used again, for it is the largest of the step.
        targets: [N] int64, numbers in the whole vocabulary.
        vocabulary: V / ranks.
        place: which rows of the head the scores are of.

    Returns:
        Losses, sums of the exponentials, and largest scores, each [N] and over all ranks.
    """
    local, here = local_rows(targets, vocabulary, place)
    largest = scores.amax(dim=-1)
    if place.group is not None:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=place.group)
    of_target = scores.sub_(largest[:, None]).gather(-1, local[:, None])[:, 0]
    sums = scores.exp_().sum(dim=-1)
    if place.group is not None:
        both = torch.stack([sums, of_target.where(here, 0.0)])
        dist.all_reduce(both, group=place.group)
        sums, of_target = both.unbind()
    return sums.log() - of_target, sums, largest


def add_product(total: torch.Tensor, gradient: torch.Tensor, hidden: torch.Tensor) -> None:
    """Add ``gradient.T @ hidden`` [V, D] to a total in fp32, without a second such matrix where the types agree."""
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.T, hidden)
    else:
        total += gradient.T @ hidden


def local_rows(targets: torch.Tensor, vocabulary: int, place: HeadPlace) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the targets' rows of this rank, 0 where they lie on another, and whether they lie here."""
    local = targets - place.first_row
    here = (local >= 0) & (local < vocabulary)
    return local.where(here, 0), here
