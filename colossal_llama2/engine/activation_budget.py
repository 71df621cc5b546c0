"""How few layers need to be recomputed for a run's activations to fit, by the planner's arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from colossal_llama2.engine.memory_plan import GIB, predict
from colossal_llama2.engine.moments import activation_peak
from colossal_llama2.engine.plan_request import PlanRequest
from colossal_llama2.errors import InputError
from colossal_llama2.model.model_shape import ModelShape

Budget = Literal["auto"] | float | None


def within_budget(shape: ModelShape, request: PlanRequest, budget: Budget) -> PlanRequest:
    """Return the request with the smallest number of recomputed layers whose activations fit.

    Args:
        shape: the model.
        request: what is trained, and how.
        budget: GiB that forward may keep for backward on a device, a layer in full among it while it is recomputed and
            its gradients; ``auto`` for what the whole plan leaves of the device here; None leaves the request alone.

    Raises:
        InputError: it does not fit with all layers recomputed, or there is no device to fit into.
    """
    if budget is None:
        return request
    if budget == "auto":
        if not torch.cuda.is_available():
            raise InputError(
                "--activation_budget auto fits a run into a CUDA device, and there is none here", remedy="give GiB"
            )
        device = int(torch.cuda.get_device_properties(0).total_memory)
        return fewest_recomputed(shape, request, lambda asked: predict(shape, asked).fits(device))
    return fewest_recomputed(shape, request, lambda asked: activation_peak(shape, asked) <= budget * GIB)


def fewest_recomputed(shape: ModelShape, request: PlanRequest, fits: Callable[[PlanRequest], bool]) -> PlanRequest:
    """Return the request with the smallest number of recomputed layers that `fits` accepts.

    Raises:
        InputError: none does.
    """
    for layers in range(shape.layers + 1):
        asked = replace(request, training=replace(request.training, checkpoint_layers=layers))
        if fits(asked):
            return asked
    least = activation_peak(shape, asked) / GIB
    raise InputError(
        f"--activation_budget: with every layer recomputed activations still take {least:.2f} GiB",
        remedy="give more, or lower --micro_batch_size or --max_length",
    )
