"""Fused RMSNorm, rotary embedding and SwiGLU of Liger-Kernel, where it is installed and there is CUDA.

Each does in one Triton kernel what torch does in several, and keeps less for the backward pass. Nothing is to be built.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any, Final, Literal

import torch

FusedKernels = Literal["auto", "off"]

PROVED: Final = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose logits and gradients `benchmarks/liger_kernels.py` has found equal with and without."""
KINDS: Final = {"rms_norm": "RMSNorm", "rope": "rotary embedding", "swiglu": "SwiGLU"}
"""What is fused, by the name Liger has for it."""

ROTARY: Final = "apply_rotary_pos_emb"
"""The function of a model type's module that rotates; attention calls it by name, so there is one for all models."""


def liger_is_usable() -> bool:
    """Tell whether Liger's kernels can run here."""
    installed = all(importlib.util.find_spec(name) for name in ("liger_kernel", "triton"))
    return installed and torch.cuda.is_available()


def fuse(model: Any, wanted: FusedKernels, gathers_weights: bool = False) -> str:
    """Put fused kernels into a model where that is possible, and say which are on, or why none is; "" without CUDA.

    Norms and MLPs of this model alone are changed; the rotary embedding is a function of transformers' module, and so
    is changed for every model of this type in the process.

    Args:
        model: a transformers model, before a plugin has it.
        wanted: ``off`` leaves it as it is.
        gathers_weights: the plugin has to notice that a weight is used, by torch's own functions (Gemini), so that no
            kernel may take one: RMSNorm stays.
    """
    if wanted == "off":
        return "fused kernels: off"
    if not torch.cuda.is_available():
        return ""
    if not liger_is_usable():
        return "fused kernels: none (pip install liger-kernel for RMSNorm, rotary embedding, SwiGLU and the loss)"
    if model.config.model_type not in PROVED:
        return f"fused kernels: none (tried with {', '.join(PROVED)}, and not with {model.config.model_type})"
    kinds = [kind for kind in KINDS if not (kind == "rms_norm" and gathers_weights)]
    put_in(model, kinds)
    left_out = "" if len(kinds) == len(KINDS) else " (not RMSNorm: its weight is Gemini's to gather)"
    return f"fused kernels: {', '.join(KINDS[kind] for kind in kinds)} by liger-kernel{left_out}"


def put_in(model: Any, kinds: list[str]) -> None:
    """Have Liger put its kernels of some kinds into a model; its losses stay out, the head's is `engine.liger_loss`."""
    from liger_kernel import transformers as liger

    apply: Callable[..., None] = getattr(liger, f"apply_liger_kernel_to_{model.config.model_type}")
    known = inspect.signature(apply).parameters
    losses = {name: False for name in ("cross_entropy", "fused_linear_cross_entropy") if name in known}
    module = sys.modules[type(model).__module__]
    stock = dict(vars(module))
    apply(model=model, **{kind: kind in kinds for kind in KINDS}, **losses)
    # Liger also swaps the classes for models that are made later, which may have to run where its kernels cannot.
    for name, value in stock.items():
        if name != ROTARY:
            setattr(module, name, value)
