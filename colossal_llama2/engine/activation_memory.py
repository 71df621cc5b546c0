"""Bytes that forward keeps for backward, layer by layer: pure arithmetic over a decoder of Llama's kind.

A layer is norm, attention, norm, gated MLP, with residuals around. What autograd saves follows from transformers' code:
a linear keeps its input when its weight (or an adapter on it) is trained, a product keeps both factors, SiLU keeps its
input, RMSNorm computes in fp32 and keeps what it normalised. `tests/engine/test_activation_memory.py` holds each sum to
what `torch.autograd.graph.saved_tensors_hooks` counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from colossal_llama2.model.model_shape import ModelShape

HALF, FULL = 2, 4  # bytes of an element


@dataclass(frozen=True)
class KeptInputs:
    """Which inputs of a layer's modules are kept because something that multiplies them is trained.

    Attributes:
        attention: of the query, key and value projections.
        attention_out: of the output projection.
        mlp: of the gate and up projections.
        mlp_out: of the down projection.
        norms: of the norms' own weights.
        adapter_width: ranks of all LoRA adapters of a layer added up; each keeps what lies between its two matrices.
        dropped_width: widths of their inputs added up, where dropout gives each a copy of its own and a mask.
    """

    attention: bool = True
    attention_out: bool = True
    mlp: bool = True
    mlp_out: bool = True
    norms: bool = True
    adapter_width: int = 0
    dropped_width: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """What one rank computes at a time.

    Attributes:
        rows, length: of the batch, in rows and in tokens.
        element: bytes of what matmuls compute in.
        autocast: weights and residual stream are fp32 and matmuls in half precision (ddp).
        flash: attention by the variable-length kernel, which groups heads itself.
        kept: which inputs training needs.
        tp: tensor-parallel ranks that share heads, MLP width and vocabulary.
        stream_split: ranks that share the sequence between blocks.
        block_split: ranks that share it inside blocks as well (all_to_all).
    """

    rows: int
    length: int
    element: int = HALF
    autocast: bool = False
    flash: bool = False
    kept: KeptInputs = KeptInputs()
    tp: int = 1
    stream_split: int = 1
    block_split: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch, padding among them."""
        return self.rows * self.length

    @property
    def stream(self) -> int:
        """Bytes of an element of the residual stream."""
        return FULL if self.autocast else self.element


def layer_bytes(shape: ModelShape, batch: MicroBatch) -> int:
    """Bytes one decoder layer keeps when nothing is recomputed."""
    stream = batch.tokens / batch.stream_split * 2 * _norm(shape.hidden, batch)
    inside = batch.tokens / (batch.tp * batch.block_split) * (_heads(shape, batch) + _mlp(shape, batch))
    kept = batch.kept.adapter_width * batch.element + batch.kept.dropped_width * (batch.element + 1)
    adapters = batch.tokens / batch.block_split * kept
    inputs = batch.tokens / batch.block_split * _block_inputs(shape, batch)
    return int(stream + inside + inputs + adapters + _mask(shape, batch))


def checkpoint_bytes(shape: ModelShape, batch: MicroBatch) -> int:
    """Bytes one decoder layer keeps when it is recomputed: its input."""
    return batch.tokens // batch.stream_split * shape.hidden * batch.stream


def ends_bytes(shape: ModelShape, batch: MicroBatch) -> int:
    """Bytes kept outside the layers: ids and positions, rotary tables, the final norm and the head's input."""
    per_token = 3 * 8 + 2 * shape.head_dim * batch.stream + _norm(shape.hidden, batch)
    return batch.tokens * (per_token + shape.hidden * batch.element)


def working_bytes(shape: ModelShape, batch: MicroBatch) -> int:
    """Bytes of gradients inside a layer at their largest, beside everything the layer kept.

    The product of gate and up: its gradient and those of both factors are there at once, and that of the residual
    stream, while the product itself is given back.
    """
    inside = batch.tokens / (batch.tp * batch.block_split) * 2 * shape.intermediate * batch.element
    return int(inside + batch.tokens / batch.stream_split * shape.hidden * batch.stream)


def logits_forward_bytes(shape: ModelShape, batch: MicroBatch, vocab: int) -> int:
    """Bytes of the logits when the loss is computed.

    They stand there as the head gave them, once more without each row's last position (a view of a single row), in
    fp32, and as log-probabilities.

    Args:
        shape: the model.
        batch: the micro-batch; a sequence that was split has been gathered.
        vocab: this rank's share of the vocabulary.
    """
    copies = batch.element * (1 + (batch.rows > 1))
    return batch.tokens * vocab * (copies + 2 * FULL)


def logits_backward_bytes(shape: ModelShape, batch: MicroBatch, vocab: int) -> int:
    """Bytes of the logits in the loss's backward pass: log-probabilities, their gradient, the scores' gradient."""
    return batch.tokens * vocab * 3 * FULL


def _norm(width: int, batch: MicroBatch) -> int:
    """RMSNorm of one token: the input in fp32, one root, and what its weight multiplied.

    In half precision the fp32 input is a copy of its own; in fp32 it is the residual stream itself, kept for this
    alone.
    """
    return FULL * width + FULL + (batch.stream * width if batch.kept.norms else 0)


def _block_inputs(shape: ModelShape, batch: MicroBatch) -> int:
    """Input of the query, key and value projections, and of gate and up; autocast casts it anew for each of them."""
    attention, mlp = (3, 2) if batch.autocast else (1, 1)
    return shape.hidden * batch.element * (attention * batch.kept.attention + mlp * batch.kept.mlp)


def _heads(shape: ModelShape, batch: MicroBatch) -> float:
    """Queries, keys, values and output of one token, and the sums of the softmax.

    Attention document by document repeats keys and values for every head, and its pieces are joined in a tensor of
    their own for the output projection.
    """
    queries = shape.heads * shape.head_dim
    keys = shape.kv_heads * shape.head_dim if batch.flash else queries
    outputs = queries * (1 if batch.flash else 1 + batch.kept.attention_out)
    kept = (queries + 2 * keys + outputs) * batch.element + FULL * shape.heads
    if not shape.norms_heads:
        return kept
    # Norms of single heads: in half precision the fp32 copy and the normalised heads; else the projection's output.
    width = (shape.heads + shape.kv_heads) * shape.head_dim
    return kept + FULL * width + FULL * (shape.heads + shape.kv_heads) + batch.element * width * batch.kept.norms


def _mlp(shape: ModelShape, batch: MicroBatch) -> int:
    """Gate, its activation, up and, for the down projection, their product; of one token."""
    return shape.intermediate * batch.element * (3 + batch.kept.mlp_out)


def _mask(shape: ModelShape, batch: MicroBatch) -> float:
    """A window shorter than a document needs a mask, kept as scores; a row of one document is the worst case."""
    if batch.flash or not 0 < shape.window < batch.length:
        return 0
    return batch.rows * batch.length**2 * batch.element
