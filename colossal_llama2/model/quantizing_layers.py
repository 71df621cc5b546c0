"""GPTQ over a whole model, a decoder layer at a time: only one layer need lie on the device.

Inputs of a layer come from the layers before it as they are already rounded, so that a layer makes up for their errors
too (arXiv 2210.17323, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from colossal_llama2.errors import InputError
from colossal_llama2.model.gptq import Grid, Rounded, gptq

_ROWS_AT_A_TIME = 4


@dataclass
class _Recording:
    """What one batch brings along: the inputs of the first layer, and every layer's further arguments."""

    hidden: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    arguments: list[dict[str, Any]] = field(default_factory=list)


@torch.no_grad()
def quantize_layers(
    model: Any,
    rows: torch.Tensor,
    grid_of: Callable[[int], Grid],
    device: torch.device,
    done: Callable[[str], None],
    with_head: bool = False,
) -> Iterator[tuple[str, Rounded]]:
    """Round every linear layer of a model's decoder layers; the model itself is changed to the rounded numbers.

    Args:
        model: a causal language model of Llama's build, in evaluation mode, on the CPU.
        rows: calibration token ids, int64 [N, S].
        grid_of: what to round a matrix with that many columns to.
        device: where to compute.
        done: told of each decoder layer.
        with_head: round the output head as well, after the layers.

    Yields:
        The name of each matrix and what it was rounded to, on the CPU.

    Raises:
        InputError: the model's activations on the calibration text are not finite.
    """
    layers = model.base_model.layers
    names = {id(module): name for name, module in model.named_modules()}
    recordings = [_record(model, layers, batch) for batch in rows.split(_ROWS_AT_A_TIME)]
    for index, layer in enumerate(layers):
        layer.to(device)
        linears = {name: part for name, part in layer.named_modules() if isinstance(part, nn.Linear)}
        with _gathering(linears, device) as hessians:
            _run(layer, index, recordings, device, keep=False)
        for name, linear in linears.items():
            yield f"{names[id(layer)]}.{name}.weight", _rounded(linear, hessians[name], grid_of)
        _run(layer, index, recordings, device, keep=True)
        layer.to("cpu")
        done(f"layer {index + 1} of {len(layers)}")
    if with_head:
        head, norm = model.get_output_embeddings().to(device), model.base_model.norm.to(device)
        with _gathering({"": head}, device) as hessians:
            for recording in recordings:
                head(norm(recording.hidden.to(device)))
        yield f"{names[id(head)]}.weight", _rounded(head, hessians[""], grid_of)
        head.to("cpu")
        norm.to("cpu")


def _rounded(linear: nn.Linear, hessian: torch.Tensor, grid_of: Callable[[int], Grid]) -> Rounded:
    if not bool(hessian.isfinite().all()):
        raise InputError(
            "activations are not finite on the calibration text",
            remedy="quantise the model in the dtype it was trained in; float16 overflows in some bfloat16 models",
        )
    rounded = gptq(linear.weight, hessian, grid_of(linear.in_features))
    linear.weight.copy_(rounded.dense())
    return Rounded(rounded.numbers.cpu(), rounded.scales.cpu(), rounded.grid)


def _record(model: Any, layers: nn.ModuleList, batch: torch.Tensor) -> _Recording:
    """Let the model embed a batch and make its masks and positions, each layer passing on what it was given."""
    recording = _Recording()
    originals = [layer.forward for layer in layers]

    def passing(index: int, hidden: torch.Tensor, **arguments: Any) -> torch.Tensor:
        if index == 0:
            recording.hidden = hidden
        recording.arguments.append(arguments)
        return hidden

    try:
        for index, layer in enumerate(layers):
            layer.forward = partial(passing, index)
        model.base_model(input_ids=batch, use_cache=False)
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.forward = original
    assert len(recording.arguments) == len(layers)
    return recording


def _run(layer: nn.Module, index: int, recordings: list[_Recording], device: torch.device, keep: bool) -> None:
    for recording in recordings:
        arguments = _moved(recording.arguments[index], device)
        hidden = layer(recording.hidden.to(device), **arguments)
        if keep:
            recording.hidden = hidden.to("cpu")


@contextmanager
def _gathering(linears: Mapping[str, nn.Linear], device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    """Sum x x^T of what goes into each linear layer, in fp32."""
    hessians = {
        name: torch.zeros(linear.in_features, linear.in_features, device=device) for name, linear in linears.items()
    }

    def gather(name: str, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        hessians[name].addmm_(x.T, x)

    hooks = [linear.register_forward_pre_hook(partial(gather, name)) for name, linear in linears.items()]
    try:
        yield hessians
    finally:
        for hook in hooks:
            hook.remove()


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(part, device) for key, part in value.items()}
    return tuple(_moved(part, device) for part in value) if isinstance(value, tuple) else value
