"""What a model is made of, without its weights: config.json gives shapes, safetensors headers what is stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from colossal_llama2.errors import InputError
from colossal_llama2.model.embedding_names import build_without_memory
from colossal_llama2.model.safetensors_stream import TORCH_DTYPES
from colossal_llama2.model.weights import find_weights

Role = Literal["embedding", "head", "layer", "other"]
_LLAMA_LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
TpStyle = Literal["colwise", "rowwise", "vocab", ""]


@dataclass(frozen=True)
class ParameterShape:
    """One parameter; tied ones are one.

    Attributes:
        name: as the model spells it.
        shape: its dimensions.
        role: input embedding (also when tied to the head), output head, part of a decoder layer, or another.
        layer: number of its decoder layer, None outside of them.
        tp_style: along what tensor parallelism divides it; empty for what every rank holds whole.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    layer: int | None
    tp_style: TpStyle

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def linear(self) -> str:
        """Last name of the linear module whose weight this is (``q_proj``); empty for anything else."""
        parts = self.name.split(".")
        return parts[-2] if self.role == "layer" and len(self.shape) == 2 and parts[-1] == "weight" else ""


@dataclass(frozen=True)
class ModelShape:
    """A causal language model as memory sees it.

    Attributes:
        parameters: every parameter once, in the model's order.
        model_type: its kind, as the configuration names it.
        hidden, intermediate: widths of the residual stream and of the MLP.
        heads, kv_heads, head_dim: of its attention.
        layers: number of decoder layers.
        vocab: rows of the output head.
        tied: the head is the input embedding.
        norms_heads: queries and keys are normalised head by head (Qwen3).
        window: tokens a query sees at most, 0 for all before it.
        has_tp_plan: transformers publishes how to divide it among tensor-parallel ranks.
        stored_bytes: of the weight files; 0 where the folder has none.
        stored_dtype: dtype of most of them, as torch names it; the configuration's where there are no files.
    """

    parameters: tuple[ParameterShape, ...]
    model_type: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocab: int
    tied: bool
    norms_heads: bool
    window: int
    has_tp_plan: bool
    stored_bytes: int
    stored_dtype: str

    @property
    def has_llama_layers(self) -> bool:
        """Its layers have the linears of Llama's, so that their activations are known."""
        return {p.linear for p in self.parameters if p.layer == 0 and p.linear} == _LLAMA_LINEARS

    @property
    def numel(self) -> int:
        """Parameters of the model."""
        return sum(parameter.numel for parameter in self.parameters)


def read_model_shape(model_dir: Path) -> ModelShape:
    """Read a model folder's config.json and the headers of its safetensors files.

    Weights in PyTorch's own format are not opened, and a folder may have none yet: the configuration is enough.

    Raises:
        InputError: it is not the folder of a causal language model, or weights and configuration disagree.
    """
    if not (model_dir / "config.json").is_file():
        raise InputError(
            "not a model folder (no config.json)", path=model_dir, remedy="name a folder saved by transformers"
        )
    model = build_without_memory(model_dir)
    if not getattr(model.config.get_text_config(), "num_attention_heads", None):
        raise InputError("a model without attention heads, which cannot be trained here", path=model_dir)
    stored = _stored(model_dir)
    shape = shape_of(model, *_sizes(stored, str(getattr(model.config, "dtype", None) or "float32")))
    for parameter in shape.parameters:
        if parameter.name in stored and stored[parameter.name][0] != parameter.shape:
            raise InputError(
                f"{parameter.name} is stored as {list(stored[parameter.name][0])}, "
                f"and config.json makes it {list(parameter.shape)}",
                path=model_dir,
                remedy="fetch config.json and the weights of one model",
            )
    return shape


def shape_of(model: Any, stored_bytes: int = 0, stored_dtype: str = "float32") -> ModelShape:
    """Describe a transformers causal language model, on whatever device.

    Args:
        model: the model; LoRA adapters around it would be counted as its own parameters.
        stored_bytes: of its weight files, for the memory that loading takes.
        stored_dtype: their dtype.
    """
    config = model.config.get_text_config()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    heads = int(config.num_attention_heads)
    plan = dict(getattr(config, "base_model_tp_plan", None) or {})
    layer_types = getattr(config, "layer_types", None)
    slides = layer_types is None or "sliding_attention" in layer_types
    roles = {id(head.weight): "head", id(embedding.weight): "embedding"}
    return ModelShape(
        parameters=tuple(
            _describe(name, tuple(parameter.shape), roles.get(id(parameter), ""), plan)
            for name, parameter in model.named_parameters()
        ),
        model_type=str(config.model_type),
        hidden=int(config.hidden_size),
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        layers=int(config.num_hidden_layers),
        vocab=int(head.weight.shape[0]),
        tied=embedding.weight is head.weight,
        norms_heads=any(name.endswith("q_norm.weight") for name, _ in model.named_parameters()),
        window=int(getattr(config, "sliding_window", None) or 0) if slides else 0,
        has_tp_plan=bool(plan),
        stored_bytes=stored_bytes,
        stored_dtype=stored_dtype,
    )


def _describe(name: str, shape: tuple[int, ...], role: str, plan: Mapping[str, str]) -> ParameterShape:
    if role:
        return ParameterShape(name, shape, "head" if role == "head" else "embedding", None, "vocab")
    found = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", name)
    if found is None:
        return ParameterShape(name, shape, "other", None, "")
    inside = "layers.*." + name[found.end() :]
    style = plan.get(inside.rpartition(".")[0], "")
    known: TpStyle = "colwise" if style == "colwise" else "rowwise" if style == "rowwise" else ""
    if known == "rowwise" and name.endswith(".bias"):
        known = ""  # added once, after the partial sums are
    return ParameterShape(name, shape, "layer", int(found[1]), known)


def _stored(model_dir: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Map the names of what is stored to shape and dtype; empty without safetensors files."""
    if not any(model_dir.glob("*.safetensors")):
        return {}
    return {name: (shape, dtype) for name, (_, shape, dtype) in find_weights(model_dir).locations().items()}


def _sizes(stored: Mapping[str, tuple[tuple[int, ...], str]], configured: str) -> tuple[int, str]:
    """Sum the bytes stored, and find the dtype that most of them have."""
    by_dtype: dict[str, int] = {}
    for shape, dtype in stored.values():
        known = TORCH_DTYPES.get(dtype)
        by_dtype[dtype] = by_dtype.get(dtype, 0) + prod(shape) * (known.itemsize if known is not None else 1)
    if not by_dtype:
        return 0, configured.removeprefix("torch.")
    most = TORCH_DTYPES.get(max(by_dtype, key=lambda dtype: by_dtype[dtype]))
    return sum(by_dtype.values()), str(most).removeprefix("torch.")
