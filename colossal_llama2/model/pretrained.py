"""Reading a model folder for training: weights in the dtype they were stored in, attention that keeps to documents."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from colossal_llama2.errors import InputError
from colossal_llama2.model import document_attention
from colossal_llama2.model.quantized import refuse_quantized

_SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)


def load_for_training(model_dir: Path, precision: str, use_flash_attn: bool) -> nn.Module:
    """Load a causal language model with document attention, on the CPU.

    Args:
        model_dir: a folder that `transformers` reads; nothing is fetched and no code in it is run.
        precision: what it will compute in (``fp16``, ``bf16`` or ``fp32``), which decides the attention kernel.
        use_flash_attn: ask for variable-length FlashAttention, taken where it can run.

    Raises:
        InputError: the folder is missing, is not a model that transformers knows, or is one whose layers would mix the
            documents of a row.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    document_attention.register()
    if not (model_dir / "config.json").is_file():
        raise InputError(
            "not a model folder (no config.json)", path=model_dir, remedy="name a folder saved by transformers"
        )
    refuse_quantized(model_dir, "cannot be trained")
    name, _ = choose_attention(precision, use_flash_attn)
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype="auto", attn_implementation=name, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"cannot be loaded ({first_line})", path=model_dir) from None
    check_attention(model, model_dir)
    model.config.use_cache = False  # type: ignore[union-attr]
    return model


def recompute_activations(model: nn.Module, layers: Collection[int] | None = None) -> None:
    """Keep no activations inside decoder layers: the backward pass computes them again.

    Args:
        model: a transformers model on which plugins have not laid hands yet, in adapters or without.
        layers: numbers of the layers that are; None for all.
    """
    enable: Callable[..., None] = model.gradient_checkpointing_enable  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the newer name is not in every version that is supported
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if layers is not None:
        for number, layer in enumerate(recomputable_layers(model)):
            layer.gradient_checkpointing = number in layers


def recomputable_layers(model: nn.Module) -> list[Any]:
    """List the decoder layers that can be recomputed one by one, in the model's order; some models have none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def check_attention(model: Any, model_dir: Path) -> None:
    """Let only models pass whose every layer attends through the function that keeps to documents.

    A layer with an attention of its own would run without any mask (Bloom saw the future in a trial), a recurrent one
    would carry its state from one document into the next.
    """
    layers = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if layers or not model._supports_attention_backend:
        reason = f"has layers of {', '.join(sorted(layers))}" if layers else "has an attention of its own"
        raise InputError(
            f"{type(model).__name__} {reason}, and would mix the documents of a row",
            path=model_dir,
            remedy="choose a model of plain attention layers (Llama, Mistral, Qwen, Gemma 3 ...)",
        )


def choose_attention(precision: str, use_flash_attn: bool) -> tuple[str, str]:
    """Pick the attention function, and the sentence that tells the user which one it is and why."""
    if not use_flash_attn:
        return document_attention.NAME, "attention: per document"
    if not torch.cuda.is_available():
        return document_attention.NAME, "attention: per document (--use_flash_attn needs CUDA, and there is none here)"
    if precision == "fp32":
        return document_attention.NAME, "attention: per document (--use_flash_attn needs fp16 or bf16)"
    return document_attention.FLASH_NAME, "attention: per document, variable-length FlashAttention"


def check_same_shape(pretrained: Path, weights_dir: Path) -> None:
    """Refuse weights of another model than the one whose configuration will be saved beside them.

    Raises:
        InputError: naming the first entry of ``config.json`` that decides a shape and differs.
    """
    ours, theirs = _read_config(pretrained), _read_config(weights_dir)
    for name in _SHAPE:
        if name in ours and name in theirs and ours[name] != theirs[name]:
            raise InputError(
                f"is another model than --pretrained ({name} is {theirs[name]}, not {ours[name]})",
                path=weights_dir,
                remedy="pass the folder it was trained from as --pretrained",
            )


def _read_config(model_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    return content


def stored_dtype(model_dir: Path) -> torch.dtype:
    """Return the dtype a model folder's configuration names; fp32 where it names none."""
    config = _read_config(model_dir)
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(
            f"unknown dtype {name!r}", path=model_dir / "config.json", remedy="write float16, bfloat16 or float32"
        )
    return dtype
