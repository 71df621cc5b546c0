"""Values per position from logits, a few positions at a time, so that no fp32 copy of all logits ever exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

CHUNK = 1024
"""Positions worked on at a time: with a vocabulary of 64,000 one fp32 copy of them is 262 MB."""

ValuesOf = Callable[[torch.Tensor, slice], torch.Tensor]


def at_least_fp32(values: torch.Tensor) -> torch.Tensor:
    """Return values in fp32, or as they are if they are float64: nothing here computes in a half type."""
    return values if values.dtype == torch.float64 else values.float()


def by_chunks(values_of: ValuesOf, logits: torch.Tensor, rows: torch.Tensor, chunk: int = CHUNK) -> torch.Tensor:
    """Compute one value for each of some rows of logits, chunk by chunk, and again chunk by chunk for the gradient.

    Beyond what it is given and the gradient of `logits`, which autograd hands over whole and in their dtype, it
    never holds a tensor larger than chunk * V. It costs the forward arithmetic twice.

    Args:
        values_of: maps logits [n, V], in fp32 or float64, and the slice of `rows` that they are, to values [n]. It may
            look at other tensors, but no gradient reaches them.
        logits: [M, V], any floating dtype.
        rows: [N] int64, the rows of `logits` wanted, none of them twice.
        chunk: rows at a time.

    Returns:
        [N] in fp32, or float64 if the logits are; its gradient can be taken once.
    """
    assert chunk > 0, "a chunk holds at least one row"
    result: torch.Tensor = _ByChunks.apply(logits, rows, values_of, chunk)
    return result


class _ByChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, rows: torch.Tensor, values_of: ValuesOf, chunk: int) -> torch.Tensor:
        ctx.save_for_backward(logits, rows)
        ctx.values_of, ctx.chunk = values_of, chunk
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        values = torch.empty(len(rows), dtype=dtype, device=logits.device)
        for which in _slices(len(rows), chunk):
            values[which] = values_of(at_least_fp32(logits[rows[which]]), which)
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        logits, rows = ctx.saved_tensors
        gradient = torch.zeros_like(logits)
        for which in _slices(len(rows), ctx.chunk):
            part = at_least_fp32(logits[rows[which]]).detach().requires_grad_()
            with torch.enable_grad():
                values = ctx.values_of(part, which)
            (of_part,) = torch.autograd.grad(values, part, grad_output[which])
            gradient[rows[which]] = of_part.to(gradient.dtype)
        return gradient, None, None, None


def _slices(length: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]
