"""Decoder layers compiled one by one: the element-wise work between their products becomes one pass over memory."""

from __future__ import annotations

import shutil
from typing import Any

import torch

from colossal_llama2.errors import InputError


def check_compile(plugin: str, backend: str = "inductor") -> None:
    """Refuse to compile where it cannot work, by the flags and the machine alone.

    Raises:
        InputError: the plugin must see every use of a weight, or there is no compiler.
    """
    if plugin in ("gemini", "gemini_auto"):
        raise InputError(
            f"--compile with --plugin {plugin}: Gemini brings weights in when one of torch's functions is called with "
            "them, and compiled layers call none",
            remedy="leave out --compile, or pass --plugin zero2, ddp or 3d",
        )
    if backend == "inductor" and not torch.cuda.is_available() and not (shutil.which("g++") or shutil.which("clang++")):
        raise InputError("--compile needs a C++ compiler on a CPU, and finds none", remedy="install g++")


def compile_layers(model: Any, backend: str = "inductor") -> int:
    """Have every decoder layer compiled when it is first run; return how many.

    A layer stays the module it is, under the names it has: what saves or divides weights sees no difference. What
    recomputes activations stands around the compiled layer. Attention by document is no part of it on a CPU, so that a
    layer is two graphs there; all layers of a model share them.

    Args:
        model: a transformers model; a plugin may still take it, or have done so.
        backend: of `torch.compile`.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile(backend=backend)
    return len(layers)
