"""The sum of the cross-entropies of a head's logits, with its gradients taken while the logits are there.

One chunk's logits give its losses, and what is left of them the gradients: three products a token, as with whole
logits, and not four as where the backward pass computes the logits again. The idea is that of Liger-Kernel's fused
linear cross-entropy (Hsu et al., arXiv 2410.10989). The price: the head's gradient, [V, D] in fp32, is held from the
loss to the backward pass, which follows at once; it used to be made there, so the peak is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from colossal_llama2.engine.chunked_loss import (
    MOST_LOGITS_BYTES,
    WHOLE,
    HeadPlace,
    add_product,
    exact,
    exponentiate,
    local_rows,
    rows_within,
)


class Summed(NamedTuple):
    """A sum of losses that carries a gradient, and the losses [N], in nats, that do not."""

    total: torch.Tensor
    losses: torch.Tensor


class Computed(NamedTuple):
    """Losses [N], and gradients [N, D] and [V, D] of their sum times `upstream`; None where not wanted."""

    losses: torch.Tensor
    of_hidden: torch.Tensor | None
    of_weight: torch.Tensor | None
    upstream: float = 1.0


@dataclass(frozen=True)
class Wanted:
    """What is to be computed, and how.

    Attributes:
        of_hidden: the gradient of the hidden states.
        of_weight: that of the head.
        upstream: the gradient that the sum is expected to get, a loss scale say. Any other one is right as well: the
            gradients are multiplied by what it is more. But a gradient in fp16 keeps only what its scale lets it.
        place: which rows of the head are here.
        most_bytes: how much memory the logits of a chunk may take, in fp32.
    """

    of_hidden: bool = False
    of_weight: bool = False
    upstream: float = 1.0
    place: HeadPlace = WHOLE
    most_bytes: int = MOST_LOGITS_BYTES


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Wanted], Computed]


def summed_cross_entropies(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    how: Wanted = Wanted(),
    kernel: Kernel | None = None,
) -> Summed:
    """Take the sum of the cross-entropies of ``hidden @ weight.T``, some hundred tokens at a time.

    Args:
        hidden: [N, D].
        weight: [V, D], the head, or this rank's rows of it.
        targets: [N] int64, numbers in the whole vocabulary.
        how: which gradients are wanted is found out here.
        kernel: what computes; `losses_and_gradients` if None.

    Returns:
        The sum and the losses in fp32 (float64 for float64), the same on every rank of the group. The sum can be taken
        back through once.
    """
    learns = torch.is_grad_enabled()
    wanted = Wanted(
        learns and hidden.requires_grad,
        learns and weight.requires_grad,
        how.upstream,
        how.place,
        how.most_bytes,
    )
    return Summed(*_Summed.apply(hidden, weight, targets, wanted, kernel or losses_and_gradients))


def losses_and_gradients(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, wanted: Wanted) -> Computed:
    """Compute in plain torch what `Computed` says; under tensor parallelism a rank's part of `of_hidden`'s sum."""
    precise = exact(hidden[:0]).dtype
    losses = hidden.new_empty(len(hidden), dtype=precise)
    of_hidden = torch.empty_like(hidden) if wanted.of_hidden else None
    of_weight = torch.zeros_like(weight, dtype=precise) if wanted.of_weight else None
    rows = rows_within(wanted.most_bytes, len(weight))
    for begin in range(0, len(hidden), rows):
        chunk = slice(begin, begin + rows)
        scores = exact(hidden[chunk] @ weight.T)
        losses[chunk], sums, _ = exponentiate(scores, targets[chunk], len(weight), wanted.place)
        if of_hidden is None and of_weight is None:
            continue
        local, here = local_rows(targets[chunk], len(weight), wanted.place)
        scores.mul_((wanted.upstream / sums)[:, None])
        scores.scatter_add_(-1, local[:, None], here.to(precise)[:, None] * -wanted.upstream)
        gradient = scores.to(hidden.dtype)
        if of_hidden is not None:
            torch.mm(gradient, weight, out=of_hidden[chunk])
        if of_weight is not None:
            add_product(of_weight, gradient, hidden[chunk])
        del scores, gradient  # or the next chunk's logits stand beside them
    return Computed(losses, of_hidden, of_weight, wanted.upstream)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, wanted: Wanted, kernel: Kernel
    ) -> tuple[torch.Tensor, torch.Tensor]:
        computed = kernel(hidden, weight, targets, wanted)
        ctx.gradients, ctx.upstream = (computed.of_hidden, computed.of_weight), computed.upstream
        ctx.group, ctx.weight_dtype = wanted.place.group, weight.dtype
        ctx.mark_non_differentiable(computed.losses)
        return computed.losses.sum(), computed.losses

    @staticmethod
    def backward(
        ctx: Any, upstream: torch.Tensor, _: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None, None]:
        (of_hidden, of_weight), ctx.gradients = ctx.gradients, (None, None)
        if of_hidden is None and of_weight is None:
            raise RuntimeError("the sum of cross-entropies has given its gradients away: it can be taken back once")
        more = upstream / ctx.upstream  # stays on the device: 1 as a rule, but to ask would be to wait
        if of_hidden is not None:
            of_hidden = of_hidden.mul_(more)
            if ctx.group is not None:
                dist.all_reduce(of_hidden, group=ctx.group)
        if of_weight is not None:
            of_weight = of_weight.mul_(more).to(ctx.weight_dtype)
        return of_hidden, of_weight, None, None, None
