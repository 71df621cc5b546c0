"""What a model publishes about dividing itself over ranks, and what a mesh asks of it: known from its configuration."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from colossal_llama2.engine.plugins import PluginSettings
from colossal_llama2.errors import InputError

COLUMN, ROW, REPLICATED = "colwise", "rowwise", "replicated_with_grad_allreduce"
_STYLES = {COLUMN, ROW, REPLICATED}
# Their forward passes hidden states from layer to layer and scales nothing on the way in: a later stage can enter
# through `inputs_embeds`. Others publish a plan and multiply their embeddings there (Granite, Gemma).
_STAGED = {"llama", "mistral", "qwen2", "qwen3"}


def styles(model: Any) -> dict[str, str]:
    """Return how each module is divided over tensor-parallel ranks, by its name in `model`.

    Args:
        model: a transformers causal language model; layers may have adapters in them.

    Raises:
        InputError: it publishes no plan, or one with a style that is not known here.
    """
    plan = getattr(model.config, "base_model_tp_plan", None)
    kind = type(model).__name__
    if not plan:
        raise InputError(
            f"{kind} publishes no tensor-parallel plan", remedy="leave --tp at 1; zero2 and gemini train it as it is"
        )
    unknown = sorted(set(plan.values()) - _STYLES)
    if unknown:
        raise InputError(
            f"{kind} divides its layers in a way that is not known here ({', '.join(unknown)})",
            remedy="leave --tp at 1; zero2 and gemini train it as it is",
        )
    rules = [
        (re.compile(rf"{re.escape(model.base_model_prefix)}\." + re.escape(name).replace(r"\*", r"\d+") + "$"), style)
        for name, style in plan.items()
    ]
    return {
        name: style
        for name, _ in model.named_modules()
        for rule, style in rules
        if rule.match(name.removesuffix(".base_layer"))
    }


def check_model(settings: PluginSettings, model: Any) -> None:
    """Refuse a model that the degrees asked for cannot divide.

    Args:
        settings: the plugin's.
        model: a transformers causal language model; layers may have adapters in them.

    Raises:
        InputError: with the number that stands in the way.
    """
    config, kind = model.config, type(model).__name__
    divisor = settings.tp * (settings.sp if settings.sp_mode == "all_to_all" else 1)
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None) or config.num_attention_heads
        if heads % divisor:
            raise InputError(
                f"{kind} has {name} {heads}, which tp x sp = {divisor} does not divide",
                remedy="lower --tp or --sp; --sp_mode split_gather asks it of --tp alone",
            )
    if settings.tp > 1:
        styles(model)
        _refuse_special_embeddings(model)
    if settings.sp > 1 and not hasattr(model.get_decoder().layers[0], "self_attn"):
        raise InputError(f"{kind} has no attention that can be divided", remedy="leave --sp at 1")
    if settings.pp > 1:
        if config.model_type not in _STAGED:
            raise InputError(
                f"{kind} has not been proved in a pipeline (proved: {', '.join(sorted(_STAGED))})",
                remedy="leave --pp at 1; --tp and zero2 divide it too",
            )
        if config.num_hidden_layers < settings.pp * settings.pp_chunks:
            raise InputError(
                f"{kind} has {config.num_hidden_layers} layers, fewer than --pp x --pp_chunks = "
                f"{settings.pp * settings.pp_chunks}",
                remedy="lower --pp or --pp_chunks",
            )


def _refuse_special_embeddings(model: Any) -> None:
    """A subclass does more than look up and multiply (Gemma's embedding scales); dividing it would lose that."""
    for module, plain in ((model.get_input_embeddings(), nn.Embedding), (model.get_output_embeddings(), nn.Linear)):
        if module is None:  # a model that scores: its head has one row, and every rank holds it
            continue
        if type(module) is not plain:
            raise InputError(
                f"{type(model).__name__} has a {type(module).__name__}, which cannot be divided over ranks",
                remedy="leave --tp at 1; zero2 and gemini train it as it is",
            )
