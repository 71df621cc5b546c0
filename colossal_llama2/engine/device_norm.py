"""The norm of ZeRO's gradients, and clipping by it, without the host ever reading it.

ColossalAI reads the norm of every group of parameters to decide in Python whether to clip: the device runs dry at the
end of each backward pass and waits while the host queues the optimizer. The same numbers are kept on the device here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist

_PIECE = 1 << 16  # a CPU adds these up in a few lanes, one after the other


def group_norm(optimizer: Any, dp_pg: Any, gradients: Sequence[torch.Tensor], norm_type: int = 2) -> Any:
    """Return the norm of a group's gradients over the ranks that share them, float64 on the device; 0.0 without any.

    Squares add up in fp32 over no more numbers than lose nothing by it, then in float64: ColossalAI's float64 from the
    first one costs a CPU five times as much, and CUDA three passes at four times the width.
    """
    if not gradients:
        return 0.0
    assert norm_type == 2, "ColossalAI asks for no other"
    norms = torch.cat([_norms(gradient.data) for gradient in gradients])
    squares = norms.double().square().sum().float()[None]  # fp32 between ranks, as in ColossalAI
    for group in dp_pg if isinstance(dp_pg, tuple) else (dp_pg,):
        if dist.get_world_size(group) > 1:
            dist.all_reduce(squares, group=group)
    return squares[0].double().sqrt()


def _norms(gradient: torch.Tensor) -> torch.Tensor:
    """Return the norms of a gradient's pieces, in fp32: of all of it on CUDA, which adds up in a tree."""
    flat = gradient.flatten()
    whole = 0 if flat.is_cuda else len(flat) // _PIECE * _PIECE
    pieces = torch.linalg.vector_norm(flat[:whole].view(-1, _PIECE), dim=1, dtype=torch.float32)
    rest = torch.linalg.vector_norm(flat[whole:], dtype=torch.float32)
    return torch.cat((pieces, rest[None]))


def norm_of_norms(norms: Iterable[Any]) -> Any:
    """Put the norms of groups together: a tensor if one of them is, else a number."""
    total: Any = 0.0
    for norm in norms:
        total = total + norm**2.0
    return total.sqrt() if isinstance(total, torch.Tensor) else math.sqrt(total)


def clip_by_norm(optimizer: Any, gradients: Sequence[torch.Tensor], total_norm: torch.Tensor | float) -> None:
    """Divide the gradients by the loss scale, and by as much more as their norm is too large; the device decides.

    The norm of 3d is its own and a number.
    """
    if not gradients:
        return
    if not isinstance(total_norm, torch.Tensor):
        total_norm = torch.full((), total_norm, dtype=torch.float64, device=gradients[0].device)
    mixin, largest = optimizer.mixed_precision_mixin, optimizer._clip_grad_norm
    scale = 1.0 if mixin is None else mixin.get_grad_div_scale()
    guard = getattr(optimizer.optim, "guard", None)
    if guard is not None:
        guard.block_unless_finite(total_norm)
    factor = torch.full_like(total_norm, scale)
    if largest > 0.0:
        factor = factor * ((total_norm / scale + 1e-6) / largest).clamp(min=1.0)
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for gradient in gradients:
        by_device.setdefault(gradient.device, []).append(gradient.data)
    for tensors in by_device.values():
        torch._foreach_mul_(tensors, (1.0 / factor).to(tensors[0]))
