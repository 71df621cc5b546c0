"""Bytes of weights, gradients and optimizer on one rank, and what each plugin needs for a moment: pure arithmetic.

Each number's reason is ColossalAI 0.5.0's source, named beside it; `docs/memory.md` has the same as a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from colossal_llama2.engine.activation_memory import FULL
from colossal_llama2.engine.gemini_chunks import Chunk, lay_out_chunks
from colossal_llama2.engine.plan_request import Held, PlanRequest, held_parameters
from colossal_llama2.engine.streamed_update import PIECE, host_share
from colossal_llama2.model.model_shape import ModelShape

MOMENTS = 2 * FULL  # AdamW's two, fp32 in every plugin
_DOUBLE = 8  # ZeRO takes norms in fp64, a shard at a time
_BUCKET = 12 * 1024 * 1024  # elements: reduce_bucket_size_in_m and zero_bucket_size_in_m are left at 12


@dataclass(frozen=True)
class StateMemory:
    """Bytes of one rank; what ends with ``_host`` lies in host memory.

    Attributes:
        weights: what forward and backward use, between steps.
        optimizer: masters and moments.
        gradients: of a whole step, once all are there.
        gradients_before: those that are there already when the last micro-batch of a step begins.
        buffers: communication buffers that stay.
        pending: elements of gradients that a bucket collects before they are reduced (ZeRO).
        pending_bytes: of each of them: as it came, and in the flat tensor that is reduced.
        single_bytes: the same for a gradient that fills a bucket alone.
        open_chunks: weights and gradients put together while a layer's gradients come in (Gemini).
        largest_gradient: beside complete gradients, while the largest parameter's comes in.
        gathered: weights put together for computing (Gemini), at the largest, less the part that was there.
        update: copies during the optimizer's step.
        gathering: buckets in which the new weights are put together after it.
        saving: beside weights and optimizer, when a checkpoint is written tensor by tensor.
        weights_host, optimizer_host, gradients_host, update_host: the same, in host memory.
        boosting_host: masters in host memory before those that are to lie on the device have gone there.
        rounding_host: beside them, what pinned memory loses: torch's allocator gives it in powers of two.
    """

    weights: int
    optimizer: int
    gradients: int
    gradients_before: int
    buffers: int = 0
    pending: int = 0
    pending_bytes: int = 0
    single_bytes: int = 0
    open_chunks: int = 0
    largest_gradient: int = 0
    gathered: int = 0
    update: int = 0
    gathering: int = 0
    saving: int = 0
    weights_host: int = 0
    optimizer_host: int = 0
    gradients_host: int = 0
    update_host: int = 0
    boosting_host: int = 0
    rounding_host: int = 0


def state_memory(shape: ModelShape, request: PlanRequest, stage: int = 0) -> StateMemory:
    """Count what one rank of a pipeline stage holds beside activations."""
    held = held_parameters(shape, request, stage)
    layout = request.layout
    if layout.plugin == "ddp":
        return _replicated(held, FULL, FULL, request)
    if layout.plugin in ("gemini", "gemini_auto"):
        return _gemini(held, shape.hidden, request)
    if layout.plugin == "3d" and (layout.zero == 0 or layout.sharing_ranks == 1):  # nobody to share with
        return _hybrid_without_zero(held, request)
    return _zero(held, request)


def rounds_weights(stored: str, precision: str) -> bool:
    """Tell whether casting the stored weights to the precision loses bits (bf16 loses fp16's, and the reverse)."""
    exact = {"fp16": {"float16"}, "bf16": {"bfloat16"}, "fp32": {"float16", "bfloat16", "float32"}}
    return stored not in exact[precision]


def _zero(held: Sequence[Held], request: PlanRequest) -> StateMemory:
    """ZeRO 1 and 2 (zero/low_level/low_level_optim.py): every parameter is cut over the ranks.

    Masters are made in fp32 even where the weights are fp32. Stage 2 keeps this rank's part of the gradients, stage 1
    all of them. A step makes fp32 copies of this rank's gradients piece by piece (`streamed_update`), and gathers the
    new weights in buckets that grow with the number of ranks.
    """
    element, ranks = request.training.element, request.layout.sharing_ranks
    shards = [-(-p.numel // ranks) for p in held if p.trained]
    share, trained, largest = sum(shards), _trained(held), max((p.numel for p in held if p.trained), default=0)
    fraction = request.layout.offload_fraction if request.layout.plugin == "zero2_cpu" else 0.0
    on_host = sum(n for n, stays in zip(shards, host_share(shards, fraction), strict=True) if stays)
    partitioned = request.layout.plugin != "3d" or request.layout.zero == 2
    gradients = element * (share if partitioned else trained)
    widest = max(shards, default=0)
    piece = max(PIECE, widest)  # whose gradients stand in fp32 at a time
    copies = FULL * min(share - on_host, piece) if element < FULL else 0
    # Shards waiting in a bucket (in fp32 the masters themselves), the same in one flat tensor, and everybody's; the
    # largest parameter put together out of it, and the shard that found no room. A shard larger than the bucket is
    # gathered into its place at once.
    collected = max((shard for shard in shards if shard <= _BUCKET), default=0)
    cast = element < FULL
    parts = min(share, _BUCKET) * (cast + 1 + ranks) + collected * ((ranks > 1) * ranks + cast * (share > _BUCKET))
    norm = _DOUBLE * widest
    # A gradient as it came, and in one flat tensor, which a single one on a single rank is already; accumulating, this
    # rank's part until it is added.
    part = element // ranks if request.accumulates else 0
    single, many = element * (1 + (ranks > 1)) + part, 2 * element + part
    return StateMemory(
        weights=element * sum(p.numel for p in held),
        optimizer=(FULL + MOMENTS) * (share - on_host),
        gradients=gradients,
        gradients_before=gradients if request.accumulates else 0,
        pending=_BUCKET,
        pending_bytes=many,
        single_bytes=single,
        largest_gradient=max(single * largest, many * min(_BUCKET, trained)),
        update=max(copies, norm),
        gathering=element * parts,
        saving=FULL * largest,
        optimizer_host=(FULL + MOMENTS) * on_host,
        update_host=FULL * min(on_host, piece) + element * min(on_host, widest),
        boosting_host=FULL * share if fraction else 0,
    )


def _replicated(held: Sequence[Held], element: int, buckets: int, request: PlanRequest) -> StateMemory:
    """Everything on every rank; DDP keeps a second place for every gradient, its buckets."""
    trained = _trained(held)
    return StateMemory(
        weights=element * sum(p.numel for p in held),
        optimizer=MOMENTS * trained,
        gradients=element * trained,
        gradients_before=element * trained if request.accumulates else 0,
        buffers=buckets * trained,
    )


def _hybrid_without_zero(held: Sequence[Held], request: PlanRequest) -> StateMemory:
    """HybridParallelPlugin at zero 0: fp32 trains as it is; in half precision every rank keeps whole masters.

    MixedPrecisionOptimizer copies gradients to fp32 one by one and lets go of the half-precision ones. Data ranks
    average gradients where they are: the session keeps the plugin from wrapping the model in DDP.
    """
    element, trained = request.training.element, _trained(held)
    plain = _replicated(held, element, 0, request)
    if element == FULL:
        return plain
    largest = max((p.numel for p in held if p.trained), default=0)
    return StateMemory(
        weights=plain.weights,
        optimizer=(FULL + MOMENTS) * trained,
        gradients=plain.gradients,
        gradients_before=plain.gradients_before,
        update=(FULL - element) * trained + _DOUBLE * largest,
    )


def _gemini(held: Sequence[Held], hidden: int, request: PlanRequest) -> StateMemory:
    """Gemini (zero/gemini): trained weights in chunks cut over the ranks, frozen ones whole on every rank.

    Without accumulation a gradient takes the place of the weights in their own chunk; with it, chunks of gradients
    stand beside. Chunks have a pinned copy in host memory, in use (gemini_auto) or not. A step makes fp32 copies of one
    parameter group's gradients.
    """
    element, ranks = request.training.element, request.layout.sharing_ranks
    chunks = lay_out_chunks([p.numel for p in held], [p.numel for p in held if p.trained], ranks, hidden)
    shards = sum(chunk.shard(ranks) for chunk in chunks)
    used = sum(chunk.used_of_first_shard(ranks) for chunk in chunks)
    frozen = element * sum(p.numel for p in held if not p.trained)
    separate = element * shards if request.accumulates else 0
    masters, moments, copies = FULL * shards, MOMENTS * used, FULL * used
    pinned = [chunk.shard(ranks) * size for chunk in chunks for size in _sizes_of_chunks(element, request.accumulates)]
    # What computing puts together comes beside what waits in host memory, and in the place of what waits on the device.
    replaced = ranks if request.layout.plugin == "gemini" else 0
    common = {
        "rounding_host": sum((1 << (size - 1).bit_length()) - size for size in pinned),
        "saving": FULL * max((chunk.size for chunk in chunks), default=0),
        "gathered": element * max((c.size - (c.size // replaced if replaced else 0) for c in chunks), default=0),
        "open_chunks": element * _open_chunks(chunks, request.accumulates),
        "largest_gradient": element * _own_chunk(chunks, held, request.accumulates),
    }
    if request.layout.plugin == "gemini":
        return StateMemory(
            weights=frozen + element * shards,
            optimizer=masters + moments,
            gradients=separate,
            gradients_before=separate,
            update=copies,
            weights_host=element * shards,
            optimizer_host=masters,
            gradients_host=separate,
            **common,
        )
    return StateMemory(
        weights=frozen,
        optimizer=0,
        gradients=0,
        gradients_before=0,
        weights_host=element * shards,
        optimizer_host=masters + moments,
        gradients_host=separate,
        update_host=copies,
        **common,
    )


def _sizes_of_chunks(element: int, accumulates: bool) -> tuple[int, ...]:
    """Bytes of an element in the chunks that a parameter lives in: weights, masters and, accumulating, gradients."""
    return (element, FULL, element) if accumulates else (element, FULL)


def _open_chunks(chunks: Sequence[Chunk], accumulates: bool) -> int:
    """Elements of chunks put together while a layer's gradients come in.

    The one computed with and the one before it, which waits for the last of its gradients; accumulating, the chunks of
    gradients are others than those of weights.
    """
    ordinary = min((chunk.size for chunk in chunks), default=0)
    return ordinary * (3 if accumulates else 2)


def _own_chunk(chunks: Sequence[Chunk], held: Sequence[Held], accumulates: bool) -> int:
    """Elements of the largest parameter's chunk, of its gradient on the way there, of that one's own chunk."""
    largest = max((p.numel for p in held if p.trained), default=0)
    return max((chunk.size for chunk in chunks), default=0) * (2 if accumulates else 1) + largest


def _trained(held: Sequence[Held]) -> int:
    return sum(p.numel for p in held if p.trained)
