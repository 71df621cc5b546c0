"""Bytes of the output head and its loss where the logits never stand in memory whole: pure arithmetic.

What `engine/chunked_loss.py` and `engine/deferred_head.py` hold at a time, said there in code.
"""

from __future__ import annotations

from colossal_llama2.engine import chunked_loss
from colossal_llama2.engine.activation_memory import (
    FULL,
    MicroBatch,
    logits_backward_bytes,
    logits_forward_bytes,
)
from colossal_llama2.engine.deferred_head import PLAIN_HEADS
from colossal_llama2.engine.plan_request import PlanRequest
from colossal_llama2.model.model_shape import ModelShape


def defers(shape: ModelShape, request: PlanRequest) -> bool:
    """Tell whether the loss takes the head itself: not in a pipeline, nor where logits are more than its product."""
    return request.training.defers_head and request.layout.pp == 1 and shape.model_type in PLAIN_HEADS


def loss_bytes(shape: ModelShape, batch: MicroBatch, vocab: int, request: PlanRequest) -> int:
    """Bytes that come and go while the loss and its gradient are computed, at their fullest.

    Args:
        shape: the model.
        batch: the micro-batch; a sequence that was split has been gathered.
        vocab: this rank's share of the vocabulary; 0 where it has no head.
        request: what is trained.
    """
    whole = max(logits_forward_bytes(shape, batch, vocab), logits_backward_bytes(shape, batch, vocab))
    if not vocab or not defers(shape, request):
        return whole
    rows = max(1, chunked_loss.MOST_LOGITS_BYTES // (FULL * vocab))
    if request.layout.tp == 1 and batch.tokens <= rows:
        return whole
    learns = request.training.lora_rank == 0 or request.training.lora_train_embeddings
    if request.layout.plugin.startswith("gemini"):
        # log-probabilities, their gradient, the scores and theirs; two chunks' gradients of the weight, not yet added
        return rows * vocab * (2 * FULL + 2 * batch.element) + learns * 2 * batch.element * vocab * shape.hidden
    forward = rows * vocab * 2 * FULL  # scores and their exponentials
    # A chunk's gradient in fp32 and as it is multiplied; the weight's gradient in fp32 and what is added to it.
    backward = rows * vocab * (FULL + batch.element * (batch.element < FULL))
    backward += learns * (FULL + batch.element) * vocab * shape.hidden + batch.tokens * shape.hidden * batch.element
    return max(forward, backward)
