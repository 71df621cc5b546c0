"""What a vocabulary costs: rows that must be held, and arithmetic for each megabyte of text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from colossal_llama2.model.model_shape import read_model_shape

MEGABYTE: Final = 1_000_000
BYTES_PER_PARAMETER: Final = 2  # as models are published, in bfloat16


@dataclass(frozen=True)
class ModelSize:
    """As much of a model as the cost of its vocabulary depends on.

    Attributes:
        name: where the figures are from.
        hidden: width of an embedding row.
        body: parameters that every token is multiplied by, embedding and head not among them.
        matrices: 1 where the head is the embedding, else 2.
    """

    name: str
    hidden: int
    body: int
    matrices: int

    def vocabulary_parameters(self, num_tokens: int) -> int:
        """Parameters of embedding and head."""
        return self.matrices * num_tokens * self.hidden

    def forward_flops(self, num_tokens: int) -> int:
        """Floating-point operations of one token's forward pass, attention between tokens not counted.

        Two for each parameter of the body and of the head (Kaplan et al., arXiv 2001.08361); looking a row up costs
        none.
        """
        return 2 * (self.body + num_tokens * self.hidden)


LLAMA_2_7B: Final = ModelSize("Llama-2-7B", 4096, 6_738_415_616 - 2 * 32_000 * 4096, 2)


def model_size(model_dir: Path | None) -> ModelSize:
    """Return the size of a model folder's model, or Llama-2-7B's where none is named.

    Raises:
        InputError: the folder holds no causal language model.
    """
    if model_dir is None:
        return LLAMA_2_7B
    shape = read_model_shape(model_dir)
    body = sum(p.numel for p in shape.parameters if p.role not in ("embedding", "head"))
    return ModelSize(model_dir.name, shape.hidden, body, 1 if shape.tied else 2)


@dataclass(frozen=True)
class VocabularyCost:
    """What one vocabulary costs.

    Attributes:
        parameters: of embedding and head.
        bytes: the same in bfloat16.
        training: floating-point operations to train a megabyte of text, a backward pass being two forward ones.
        generation: floating-point operations to generate a megabyte of text.
    """

    parameters: int
    bytes: int
    training: float
    generation: float


def vocabulary_cost(size: ModelSize, num_tokens: int, tokens_per_byte: float) -> VocabularyCost:
    """Return the cost of a vocabulary of `num_tokens` that needs so many tokens for a byte of text."""
    parameters = size.vocabulary_parameters(num_tokens)
    generation = tokens_per_byte * MEGABYTE * size.forward_flops(num_tokens)
    return VocabularyCost(parameters, BYTES_PER_PARAMETER * parameters, 3 * generation, generation)
