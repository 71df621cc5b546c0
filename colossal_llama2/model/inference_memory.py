"""How much memory a model takes while it answers, from its configuration: weights, cache, a step's activations.

Nothing is derived from a measurement but the allowances, which are named as such. Weights are exact to the byte but for
files' headers; the rest is what transformers' own generation allocates.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Literal

import torch

from colossal_llama2.model.model_shape import ModelShape, ParameterShape
from colossal_llama2.model.quantizing import DEFAULT_GROUP_SIZE, group_size_for

Stored = Literal["as stored", "int8", "int4-gptq", "nf4"]
STORED: Final[tuple[Stored, ...]] = ("as stored", "int8", "int4-gptq", "nf4")

# Outside of what torch allocates; an assumption, the same as in the plan of a training run. None on a CPU.
CUDA_CONTEXT: Final = 1 << 29
_LOGITS_BYTES: Final = 4  # generation compares logits in fp32
_NF4_BLOCK, _NF4_NESTED = 64, 256  # bitsandbytes' block of numbers, and of scales that share a scale of their own
_NF4_TABLES: Final = 4 * (16 + 256)  # of each matrix: the sixteen numbers, and those of the scales


@dataclass(frozen=True)
class InferenceMemory:
    """Bytes at the fullest moment of generation.

    Attributes:
        weights: all of them, packed where they stay packed.
        cache: keys and values of every token of every row.
        activations: of one layer over the whole prompt, and the last position's logits.
        unpacked: the largest matrix, in full while it is multiplied.
        context: allowance for CUDA itself.
    """

    weights: int
    cache: int
    activations: int
    unpacked: int
    context: int

    @property
    def allocated(self) -> int:
        """What torch allocates."""
        return self.weights + self.cache + self.activations + self.unpacked

    @property
    def total(self) -> int:
        """What the device shows as taken."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Answering:
    """What is asked for.

    Attributes:
        stored: how linear layers are stored.
        tokens: of prompt and answer together, in each row.
        rows: answered at a time.
        group_size: of int4-gptq.
        with_head: the output head is quantised as well.
        on_gpu: the allowance for CUDA's context is added.
    """

    stored: Stored
    tokens: int = 128
    rows: int = 1
    group_size: int = DEFAULT_GROUP_SIZE
    with_head: bool = False
    on_gpu: bool = True


def predict_inference(shape: ModelShape, asked: Answering) -> InferenceMemory:
    """Predict the memory of generation by transformers, weights staying packed.

    Args:
        shape: of the unquantised model.
        asked: how it is stored, and how much it answers.
    """
    element = _element(shape)
    positions = asked.tokens * asked.rows
    kept = min(asked.tokens, shape.window) if shape.window else asked.tokens
    # residual stream, its norm in fp32, queries with the rotated copy, keys and values, or else the two halves of the
    # gated MLP and their product: the larger of attention and MLP, over every position of the prompt
    stream = 2 * shape.hidden * element + shape.hidden * _LOGITS_BYTES
    attention = (3 * shape.heads + 3 * shape.kv_heads) * shape.head_dim * element
    mlp = 3 * shape.intermediate * element
    return InferenceMemory(
        weights=sum(weight_bytes(parameter, shape, asked) for parameter in shape.parameters),
        cache=2 * shape.layers * shape.kv_heads * shape.head_dim * kept * asked.rows * element,
        activations=positions * (stream + max(attention, mlp)) + 2 * asked.rows * shape.vocab * _LOGITS_BYTES,
        unpacked=_largest_unpacked(shape, asked, element),
        context=CUDA_CONTEXT if asked.on_gpu else 0,
    )


def weight_bytes(parameter: ParameterShape, shape: ModelShape, asked: Answering) -> int:
    """Return the bytes that one parameter takes as stored."""
    numel, element = parameter.numel, _element(shape)
    if not is_rounded(parameter, asked):
        return numel * element
    rows, columns = parameter.shape
    if asked.stored == "nf4":
        blocks = -(-numel // _NF4_BLOCK)
        nested = -(-blocks // _NF4_NESTED)
        return -(-numel // 2) + blocks + 4 * nested + _NF4_TABLES
    bits = 8 if asked.stored == "int8" else 4
    groups = 1 if asked.stored == "int8" else columns // group_size_for(columns, asked.group_size)
    words = -(-columns * bits // 32)
    return rows * (4 * words + groups * element) + 16  # and two int64 of its shape


def is_rounded(parameter: ParameterShape, asked: Answering) -> bool:
    """Tell whether a parameter is a matrix that is stored in few bits."""
    is_head = parameter.role == "head" and asked.with_head
    return asked.stored != "as stored" and (bool(parameter.linear) or is_head)


def _largest_unpacked(shape: ModelShape, asked: Answering, element: int) -> int:
    """Numbers of the largest rounded matrix in full, and as int8 on the way there where they are unpacked by torch."""
    largest = max((p.numel for p in shape.parameters if is_rounded(p, asked)), default=0)
    return largest * (element if asked.stored == "nf4" else element + 1)


def _element(shape: ModelShape) -> int:
    dtype = getattr(torch, shape.stored_dtype, None)
    return dtype.itemsize if isinstance(dtype, torch.dtype) else 4
