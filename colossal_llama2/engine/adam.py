"""AdamW on the fused kernels that ship with torch, under the interface of ColossalAI's HybridAdam."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from colossal_llama2.engine import compat
from colossal_llama2.engine.guard import Guard

compat.install()

from colossalai.nn.optimizer import HybridAdam  # noqa: E402
from colossalai.nn.optimizer.nvme_optimizer import NVMeOptimizer  # noqa: E402
from colossalai.zero.gemini import gemini_optimizer  # noqa: E402


class FusedAdamW(HybridAdam):
    """AdamW with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101), CPU and CUDA, nothing compiled.

    HybridAdam builds a C++/CUDA extension on first use; this subclass keeps its state layout (an int ``step`` beside
    ``exp_avg`` and ``exp_avg_sq``) and its ``div_scale`` argument, and calls ``torch._fused_adamw_`` instead. That
    kernel is not public API: `tests/engine/test_adam.py` pins it bit for bit to ``torch.optim.AdamW(fused=True)``.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay per step, times the learning rate.
    """

    num_fp32_shards_per_param = 4  # master weight, two moments, gradient: what ColossalAI's memory tracer reads

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "bias_correction": True}
        NVMeOptimizer.__init__(self, params, defaults, 0.0, None)
        self.adamw_mode = True
        self.guard: Guard | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, div_scale: float = -1) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss.
            div_scale: what the gradients must be divided by first; not positive means they are unscaled.
        """
        loss = None if closure is None else closure()
        self._pre_step()
        for group in self.param_groups:
            for (device, _, step), bucket in self._buckets(group, copy_gradients=div_scale > 0).items():
                # filled and not copied from the host: a copy waits for the device
                scale = torch.full((), float(div_scale), device=device) if div_scale > 0 else None
                self._update(group, bucket, torch.full((), float(step), device=device), scale)
        self._post_step()
        return loss

    def start_state(self, parameter: torch.Tensor) -> dict[str, Any]:
        """Return a parameter's state, zero moments at step 0 if it has none yet."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def _buckets(self, group: dict[str, Any], copy_gradients: bool) -> dict[tuple[Any, ...], list[list[torch.Tensor]]]:
        """Sort a group's tensors by what one kernel call can take: device, dtype and step count."""
        buckets: dict[tuple[Any, ...], list[list[torch.Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.start_state(parameter)
            state["step"] += 1
            gradient = parameter.grad.to(parameter.dtype)
            if copy_gradients and gradient is parameter.grad:
                gradient = gradient.clone()  # the kernel writes the unscaled gradient back
            key = (parameter.device, parameter.dtype, state["step"])
            tensors = (parameter.data, gradient, state["exp_avg"], state["exp_avg_sq"])
            for column, tensor in zip(buckets.setdefault(key, [[], [], [], []]), tensors, strict=True):
                column.append(tensor)
        return buckets

    def _update(
        self, group: dict[str, Any], bucket: list[list[torch.Tensor]], step: torch.Tensor, scale: torch.Tensor | None
    ) -> None:
        parameters, gradients, exp_avgs, exp_avg_sqs = bucket
        torch._fused_adamw_(
            parameters,
            gradients,
            exp_avgs,
            exp_avg_sqs,
            [],
            [step] * len(parameters),
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=scale,
            found_inf=None if self.guard is None else self.guard.blocked.to(parameters[0].device),
        )


# Gemini takes optimizers of listed types alone (gemini_optimizer.py:121 compares the exact type).
gemini_optimizer._AVAIL_OPTIM_LIST.add(FusedAdamW)
