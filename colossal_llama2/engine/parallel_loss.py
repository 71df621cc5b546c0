"""Cross-entropy over logits whose vocabulary is divided among tensor-parallel ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def cross_entropies(logits: torch.Tensor, targets: torch.Tensor, first_row: int, group: Any) -> torch.Tensor:
    """Take the cross-entropy of every token, each rank holding the logits of some rows of the vocabulary.

    loss = log(sum(exp(x))) - x[target], with the sum and the target's logit added up over the ranks (Shoeybi et al.,
    Megatron-LM, arXiv 1909.08053, section 3). ColossalAI's ``cross_entropy_1d`` keeps a softmax in the logits' dtype
    and reads the shard's bounds from a size that it is given; this one computes in fp32 and is told the first row.

    Args:
        logits: [N, V / ranks], this rank's columns; ranks may hold different numbers of them.
        targets: [N] int64, numbers in the whole vocabulary.
        first_row: number of this rank's first column in the whole vocabulary.
        group: the tensor-parallel process group.

    Returns:
        [N] in nats, fp32, the same on every rank of the group. The gradient with respect to `logits` is this rank's.
    """
    result: torch.Tensor = _CrossEntropies.apply(logits, targets, first_row, group)
    return result


def whole_logits(logits: torch.Tensor, columns: int, group: Any) -> torch.Tensor:
    """Put the ranks' parts of the logits together.

    Args:
        logits: [..., C], this rank's columns, `columns` or fewer.
        columns: of every rank but the last ones, which may hold fewer.
        group: the tensor-parallel process group.

    Returns:
        [..., ranks * columns], the same on every rank; -inf where a rank holds fewer.
    """
    own = torch.nn.functional.pad(logits, (0, columns - logits.shape[-1]), value=float("-inf")).contiguous()
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group=group)
    return torch.cat(parts, dim=-1)


class _CrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, first_row: int, group: Any) -> torch.Tensor:
        scores = logits.float()
        largest = scores.max(dim=-1).values
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        exponentials = (scores - largest[:, None]).exp_()
        local = targets - first_row
        here = (local >= 0) & (local < logits.shape[-1])
        local = local.where(here, 0)
        of_target = (scores.gather(-1, local[:, None])[:, 0] - largest).where(here, 0.0)
        sums = torch.stack((exponentials.sum(dim=-1), of_target))
        dist.all_reduce(sums, group=group)
        ctx.save_for_backward(exponentials.div_(sums[0][:, None]), local, here)
        ctx.dtype = logits.dtype
        return sums[0].log() - sums[1]

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        probabilities, local, here = ctx.saved_tensors
        gradient = probabilities.clone()
        gradient.scatter_add_(-1, local[:, None], -here.to(gradient.dtype)[:, None])
        return gradient.mul_(grad_output[:, None]).to(ctx.dtype), None, None, None
