"""Which tensors of a checkpoint have one row a token, found by building the model without memory."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from colossal_llama2.errors import InputError

SCORE_HEAD: Final = "score"
"""transformers' name for the head of a model that scores a text instead of predicting its tokens."""


@dataclass(frozen=True)
class EmbeddingNames:
    """Names of the tensors with one row a token, as the checkpoint spells them.

    Attributes:
        inputs: the input embedding; None where a tied model stored the output head alone.
        output: the output head; None where it is tied and not stored, or packed into fewer bits.
        output_bias: the output head's bias, if it has one.
        tied: every name that transformers has for a tied weight, stored or not; empty where nothing is tied.
    """

    inputs: str | None
    output: str | None
    output_bias: str | None
    tied: frozenset[str] = frozenset()

    @property
    def all(self) -> tuple[str, ...]:
        """Every tensor that is stored and has one row a token."""
        return tuple(name for name in (self.inputs, self.output, self.output_bias) if name is not None)


def find_embeddings(model_dir: Path, stored: Container[str]) -> EmbeddingNames:
    """Find the embedding tensors of a causal language model by its configuration.

    Args:
        model_dir: the model folder; only ``config.json`` is read, no code in it is run.
        stored: the names in its checkpoint.

    Raises:
        InputError: transformers does not know the model, or a tensor it must have is not stored.
    """
    model = build_without_memory(model_dir)
    modules = {id(module): name for name, module in model.named_modules()}
    inputs, output = model.get_input_embeddings(), model.get_output_embeddings()
    if inputs is None or output is None:
        raise InputError("a model without input embedding or output head", path=model_dir)
    tied = inputs.weight is output.weight
    prefix = f"{model.base_model_prefix}."
    spelled = f"{modules[id(inputs)]}.weight", f"{modules[id(output)]}.weight"
    input_name, output_name = (_as_stored(name, prefix, stored) for name in spelled)
    bias_name = None
    if getattr(output, "bias", None) is not None:
        bias_name = _as_stored(f"{modules[id(output)]}.bias", prefix, stored)
    if f"{SCORE_HEAD}.weight" in stored:  # a model that scores has another head
        missing = input_name is None
    elif tied:
        missing = input_name is None and output_name is None
    else:
        is_packed = any(f"{spelling}_packed" in stored for spelling in (spelled[1], spelled[1].removeprefix(prefix)))
        missing = input_name is None or (output_name is None and not is_packed)  # a quantised head has other rows
    if missing:
        what = "input embedding" if input_name is None else "output head"
        raise InputError(f"the {what} is not among the weights", path=model_dir, remedy="fetch the model again")
    return EmbeddingNames(input_name, output_name, bias_name, frozenset(spelled if tied else ()))


def build_without_memory(model_dir: Path, scores: bool = False) -> Any:
    """Build a causal language model from its configuration on torch's meta device: every shape, not a single weight.

    Args:
        model_dir: its folder.
        scores: give it a head that scores in the place of the one that predicts tokens.

    Raises:
        InputError: the folder has no configuration of a causal language model that transformers knows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    try:
        config = AutoConfig.from_pretrained(str(model_dir), local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            if scores:
                config.num_labels = 1
            kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
            model = kind.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"not a causal language model that transformers knows ({first_line})", path=model_dir
        ) from None
    model.tie_weights()
    return model


def _as_stored(name: str, prefix: str, stored: Container[str]) -> str | None:
    """Spell a name as the checkpoint does, which may leave out the base model's prefix."""
    for spelling in (name, name.removeprefix(prefix)):
        if spelling in stored:
            return spelling
    return None
