"""Decoder layers compiled one by one: the element-wise work between their products becomes one pass over memory."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, Final

import torch

from colossal_llama2.errors import InputError

_TRIED: Final = ("zero2", "zero2_cpu", "ddp")  # zero2_cpu differs from zero2 in the optimizer alone


def check_compile(plugin: str, backend: str = "inductor") -> None:
    """Refuse to compile where it cannot work, by the flags and the machine alone.

    Raises:
        InputError: the plugin must see every use of a weight, or there is no compiler.
    """
    if plugin in ("gemini", "gemini_auto"):
        raise InputError(
            f"--compile with --plugin {plugin}: Gemini brings weights in when one of torch's functions is called with "
            "them, and compiled layers call none",
            remedy="leave out --compile, or pass --plugin zero2",
        )
    if plugin not in _TRIED:
        raise InputError(
            f"--compile with --plugin {plugin}: not tried yet", remedy="leave out --compile, or pass --plugin zero2"
        )
    if backend == "inductor" and not torch.cuda.is_available() and not (shutil.which("g++") or shutil.which("clang++")):
        raise InputError("--compile needs a C++ compiler on a CPU, and finds none", remedy="install g++")


def compile_layers(model: Any, backend: str = "inductor") -> int:
    """Have every decoder layer compiled when it is first run; return how many.

    What is compiled is what the layer does, not the layer: it stays the module it is, under the names it has, with the
    hooks that plugins put on it outside. Recomputation of activations stands outside as well. transformers would put it
    inside, where the break that attention by document makes in the graph has torch give up on the whole layer. On a CPU
    a layer is two graphs therefore, before attention and after it; layers of one kind share them.

    Args:
        model: a transformers model whose layers no plugin has divided or hooked into yet.
        backend: of `torch.compile`.

    Raises:
        InputError: the model has no such layers.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(f"--compile: {type(model).__name__} has no decoder layers of their own", remedy="leave it out")
    compiled: dict[type, Callable[..., Any]] = {}
    for layer in layers:
        kind = type(layer)
        # transformers wraps what a layer does in what recomputes it, and keeps the former there
        plain: Callable[..., Any] = inspect.unwrap(kind.forward)
        layer.forward = MethodType(_run_layer, layer)
        layer.compiled_forward = compiled.setdefault(kind, torch.compile(plain, backend=backend))
    return len(layers)


def _run_layer(layer: Any, *args: Any, **kwargs: Any) -> Any:
    forward = partial(layer.compiled_forward, layer, **kwargs)
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(forward, *args)
    return forward(*args)
