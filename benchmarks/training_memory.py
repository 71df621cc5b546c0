"""One rank of a few training steps on random models, and what lies in memory meanwhile: started by `memory_plan.py`.

On CUDA the peak is ``torch.cuda.max_memory_allocated``. On a CPU it is the running sum of every allocation that the
profiler saw since before the model was made: the resident set would show the allocator's habits instead. What gloo
allocates for itself inside a collective call is left out: NCCL has its own buffers, outside of torch's count.
"""

from __future__ import annotations

import gc
import json
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from colossal_llama2.dataset.batches import Batch, collate
from colossal_llama2.dataset.parts import Row
from colossal_llama2.engine import ranks
from colossal_llama2.engine.plan_request import Layout, PlanRequest, Training, recomputed_layers
from colossal_llama2.engine.plugins import PluginName, PluginSettings, Precision
from colossal_llama2.engine.precision import DTYPES
from colossal_llama2.engine.session import AdamSettings, Session
from colossal_llama2.model.freezing import decay_groups, freeze_all_but_embeddings
from colossal_llama2.model.model_shape import ModelShape, shape_of
from colossal_llama2.model.pretrained import choose_attention, recompute_activations
from colossal_llama2.train.stage import PRETRAINING

STEPS = 2  # the last one is measured: moments come with the first update
_MARK = "measured step"
_COLLECTIVE = "collective"
_TRIES, _UNSEEN = 5, 0.01


@dataclass(frozen=True)
class Case:
    """A random Llama and how it is trained.

    Attributes:
        ranks: processes.
        plugin, precision: as in train.py.
        rows, length, accumulation: of a micro-batch, and micro-batches of a step.
        recompute, flash, frozen: switches of train.py.
        checkpoint_layers: so many layers are recomputed, where not all.
        defer: the loss takes the head itself, as in pretraining.
        tied: embedding and head are one.
        hidden, intermediate, layers, heads, kv_heads, vocab: of the model.
    """

    ranks: int = 1
    plugin: PluginName = "zero2"
    precision: Precision = "bf16"
    rows: int = 2
    length: int = 128
    accumulation: int = 1
    recompute: bool = False
    checkpoint_layers: int = 0
    defer: bool = False
    flash: bool = False
    frozen: bool = False
    tied: bool = False
    hidden: int = 192
    intermediate: int = 512
    layers: int = 4
    heads: int = 6
    kv_heads: int = 3
    vocab: int = 4096

    @property
    def request(self) -> PlanRequest:
        """The plan's view of it."""
        training = Training(
            precision=self.precision,
            micro_batch_size=self.rows,
            accumulation_steps=self.accumulation,
            max_length=self.length,
            use_grad_checkpoint=self.recompute,
            checkpoint_layers=self.checkpoint_layers,
            defers_head=self.defer,
            use_flash_attn=self.flash and torch.cuda.is_available(),
            freeze_non_embeds_params=self.frozen,
        )
        return PlanRequest(Layout(plugin=self.plugin, nproc=self.ranks), training)


def build_model(case: Case) -> Any:
    """Make the random model, on the CPU, in the precision it is trained in."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from colossal_llama2.model import document_attention

    document_attention.register()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=case.vocab,
        hidden_size=case.hidden,
        intermediate_size=case.intermediate,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads,
        max_position_embeddings=case.length,
        tie_word_embeddings=case.tied,
        use_cache=False,
        attn_implementation=choose_attention(case.precision, case.flash)[0],
    )
    torch.set_default_dtype(DTYPES[case.precision])
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    if case.frozen:
        freeze_all_but_embeddings(model)
    if case.recompute:
        recompute_activations(model)
    elif case.checkpoint_layers:
        (chosen,) = recomputed_layers(case.checkpoint_layers, case.layers, 1)
        recompute_activations(model, chosen)
    return model


def case_shape(case: Case) -> ModelShape:
    """Describe the case's model without making it."""
    with torch.device("meta"):
        model = build_model(case)
    return shape_of(model, stored_dtype=str(DTYPES[case.precision]).removeprefix("torch."))


def measure(case: Case) -> dict[str, int]:
    """Train a few steps and return this rank's bytes by kind, and the peak of the last step."""
    gc.collect()  # what is left of an earlier case, and freed while this one is measured, would count against it
    if torch.cuda.is_available():
        kinds = _train(case)
        return {**kinds, "peak": int(ranks.largest_over_ranks(torch.cuda.max_memory_allocated()))}
    for _ in range(_TRIES):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            kinds = _train(case)
            gc.collect()
        peak, left = _peak_of(profiler)
        # A thread of gloo's may be the last to let go of a tensor, which the profiler does not see: measure again. Not
        # with Gemini, whose caches keep chunks alive, and whose collectives are all among those marked.
        unseen = 0.0 if case.plugin.startswith("gemini") else abs(left) / peak
        if ranks.largest_over_ranks(unseen) < _UNSEEN:
            return {**kinds, "peak": int(ranks.largest_over_ranks(peak))}
    raise RuntimeError(f"{_TRIES} times {left} bytes were let go of unseen: {case}")


def _train(case: Case) -> dict[str, int]:
    model = build_model(case)
    settings = PluginSettings(plugin=case.plugin, precision=case.precision)  # type: ignore[arg-type]
    groups, accumulates = decay_groups(model, 0.1), case.accumulation > 1
    session = Session(settings, model, groups, AdamSettings(), lambda step: 1.0, accumulates=accumulates)
    if case.defer:
        session.defer_head()
    micro_batches = [_batch(case, seed) for seed in range(case.accumulation)]
    for step in range(STEPS):
        last = step == STEPS - 1
        if last and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with torch.profiler.record_function(_MARK) if last else nullcontext():
            _accumulate(session, micro_batches)
            gradients = gradient_bytes(session)
            session.step()
    return {
        "weights": storage_bytes(_weights(session)),
        "optimizer": storage_bytes(_optimizer_tensors(session)),
        "gradients": gradients,
    }


def _accumulate(session: Session, micro_batches: list[Batch]) -> None:
    session.learn(micro_batches, PRETRAINING, 1 / sum(batch.num_learned for batch in micro_batches))


def _batch(case: Case, seed: int) -> Batch:
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(case.rows):
        tokens = draw.integers(0, case.vocab, case.length).astype(np.int32)
        rows.append(Row(tokens, tokens, np.array([case.length], dtype=np.int32)))
    return collate(rows)


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind tensors, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _chunks(session: Session, kind: str) -> list[Any]:
    groups = session.model.chunk_manager.chunk_groups
    return [chunk for name, chunks in groups.items() if name.startswith(kind) for chunk in chunks]


def _weights(session: Session) -> list[torch.Tensor]:
    if not hasattr(session.model, "chunk_manager"):
        return list(session.model.unwrap().parameters())
    frozen = [p for p in session.model.module.parameters() if not p.requires_grad]
    return frozen + [chunk.payload for chunk in _chunks(session, "fp16")]


def _optimizer_tensors(session: Session) -> list[torch.Tensor]:
    optimizer = session.optimizer.unwrap()
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [value for value in states if isinstance(value, torch.Tensor)]
    if hasattr(session.model, "chunk_manager"):
        return tensors + [chunk.payload for chunk in _chunks(session, "fp32")]
    weights = {p.untyped_storage().data_ptr() for p in session.model.unwrap().parameters()}
    masters = [p.data for group in optimizer.param_groups for p in group["params"]]
    return tensors + [p for p in masters if p.untyped_storage().data_ptr() not in weights]


def gradient_bytes(session: Session) -> int:
    """Bytes of a step's gradients, all of them there and none used yet."""
    if hasattr(session.model, "chunk_manager"):
        chunks = [chunk.grad_chunk for chunk in _chunks(session, "fp16")]
        return storage_bytes(chunk.payload for chunk in chunks if chunk is not None)
    stores = getattr(session.optimizer, "pg_to_grad_store", {}).values()
    kept = [g for store in stores for by_id in store._grads_of_params.values() for gs in by_id.values() for g in gs]
    own = [p.grad for p in session.model.unwrap().parameters() if p.grad is not None]
    return storage_bytes([*kept, *own])


def mark_collectives() -> None:
    """Make the collectives that ZeRO and Gemini call wait until they are done, and give them a name in the profile."""
    for name in ("reduce_scatter_tensor", "all_gather_into_tensor"):
        setattr(torch.distributed, name, _marked(getattr(torch.distributed, name)))


def _marked(collective: Callable[..., Any]) -> Callable[..., None]:
    def call(output: torch.Tensor, given: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        with torch.profiler.record_function(_COLLECTIVE):
            # Copies, because a thread of gloo's may be the last to let go of them, which the profiler does not see.
            taken = output.clone()
            collective(taken, given.clone(), *args, **{**kwargs, "async_op": False})
            output.copy_(taken)
            del taken  # inside of what is left out

    return call


def _peak_of(profiler: Any) -> tuple[int, int]:
    """Largest running sum of allocations in the marked step, from before the model was made, and the last sum."""
    events = list(profiler.profiler.kineto_results.events())
    spans = {
        name: [(e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name() == name]
        for name in (_MARK, _COLLECTIVE)
    }
    (begin, end), *_ = spans[_MARK]
    starts = sorted(spans[_COLLECTIVE])
    total = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now = event.start_ns()
        nearest = bisect_right(starts, (now, sys.maxsize)) - 1
        if nearest >= 0 and now <= starts[nearest][1]:
            continue
        total += event.nbytes()
        if begin <= now <= end:
            peak = max(peak, total)
    return peak, total


if __name__ == "__main__":
    ranks.launch(seed=0)
    if not torch.cuda.is_available():
        mark_collectives()
    for arguments in json.loads(sys.argv[1]):
        measured = measure(Case(**arguments))
        if ranks.is_first():
            print("measured " + json.dumps(measured), flush=True)
    ranks.close()
