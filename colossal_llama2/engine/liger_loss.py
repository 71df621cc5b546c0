"""Liger-Kernel's fused linear cross-entropy in the place of our own: one Triton kernel for what torch does in six."""

from __future__ import annotations

import torch

from colossal_llama2.engine.summed_loss import Computed, Kernel, Wanted
from colossal_llama2.model.fused_kernels import liger_is_usable


def fused_kernel(hidden: torch.Tensor, how: Wanted) -> Kernel | None:
    """Return Liger's kernel where it can do what is asked: on CUDA, a head that is whole, anything but fp16.

    In fp16 it would round gradients before the loss scale is on them, and what is small in them would be lost.
    """
    fits = hidden.is_cuda and how.place.group is None and hidden.dtype in (torch.bfloat16, torch.float32)
    return liger_losses_and_gradients if fits and len(hidden) and liger_is_usable() else None


def liger_losses_and_gradients(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, wanted: Wanted
) -> Computed:
    """Do what `summed_loss.losses_and_gradients` does; the chunks are of Liger's choosing.

    Its logits are in the dtype of the hidden states, and so are its p - onehot(target) as here; sums are in fp32.
    """
    from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

    needed = wanted.of_hidden or wanted.of_weight
    losses, _, _, _, of_hidden, of_weight, _ = fused_linear_cross_entropy_forward(
        hidden.contiguous(),
        weight.contiguous(),
        targets,
        reduction="none",
        accum_dtype=torch.float32,
        compute_gradients=needed,
        weight_requires_grad=wanted.of_weight,
    )
    return Computed(losses, of_hidden if wanted.of_hidden else None, of_weight if wanted.of_weight else None)
