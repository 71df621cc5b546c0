"""Activations as planned are the bytes that autograd really saves."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from colossal_llama2.engine.activation_memory import (
    KeptInputs,
    MicroBatch,
    checkpoint_bytes,
    ends_bytes,
    layer_bytes,
    logits_backward_bytes,
    logits_forward_bytes,
)
from colossal_llama2.engine.plan_request import PlanRequest, Training, micro_batch_of
from colossal_llama2.model import document_attention
from colossal_llama2.model.freezing import freeze_all_but_embeddings
from colossal_llama2.model.model_shape import ModelShape, shape_of
from colossal_llama2.model.pretrained import recompute_activations

DTYPES = {2: torch.bfloat16, 4: torch.float32}
_BYTES_OF_POSITIONS_AND_LABELS = 16  # counted by the plan as present; autograd saves the ids alone


def build(family: str, layers: int, kv_heads: int, dtype: torch.dtype, window: int | None = None) -> Any:
    import transformers

    document_attention.register()
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=96,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=16,
        attn_implementation=document_attention.NAME,
    )
    if window:
        config.sliding_window = window
    return getattr(transformers, f"{family}ForCausalLM")(config).to(dtype)


def saved_bytes(model: Any, rows: int, length: int, autocast: bool = False, documents: int = 2) -> int:
    """Bytes of the storages that forward saves for backward, the model's own weights left out.

    A row holds `documents` of one length; to join several again costs what a row of one does not.
    """
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage
        return tensor

    bounds = torch.arange(0, rows * length + 1, length // documents, dtype=torch.int32)
    context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), context:
        model(
            input_ids=torch.randint(0, 96, (rows, length)),
            position_ids=torch.arange(length).repeat(rows, 1),
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=length // documents,
            max_length_k=length // documents,
            use_cache=False,
        )
    return sum(storage.nbytes() for storage in found.values())


def repeated_keys(shape: ModelShape, tokens: int, element: int) -> int:
    """Bytes of the keys and values that are repeated for every head; a CPU's kernel shares them, CUDA's does not."""
    return 2 * (shape.heads - shape.kv_heads) * shape.head_dim * tokens * element


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("element", [2, 4])
@pytest.mark.parametrize(("rows", "length"), [(1, 24), (3, 10)])
@pytest.mark.parametrize(("family", "kv_heads"), [("Llama", 4), ("Llama", 2), ("Qwen2", 2), ("Qwen3", 2)])
def test_every_byte_that_a_layer_keeps_is_planned(
    family: str, kv_heads: int, rows: int, length: int, element: int, frozen: bool
) -> None:
    models = [build(family, layers, kv_heads, DTYPES[element]) for layers in (1, 3)]
    if frozen:
        for model in models:
            freeze_all_but_embeddings(model)
    one, three = (saved_bytes(model, rows, length) for model in models)
    batch = MicroBatch(rows, length, element, kept=KeptInputs(*[not frozen] * 5))
    shape = shape_of(models[0])
    layer = (three - one) // 2
    assert layer == layer_bytes(shape, batch) - repeated_keys(shape, rows * length, element)
    ends = one - layer + _BYTES_OF_POSITIONS_AND_LABELS * rows * length
    assert ends == ends_bytes(shape, batch)


def test_a_window_shorter_than_the_row_keeps_a_mask() -> None:
    models = (build("Mistral", layers, 2, torch.bfloat16, 8) for layers in (1, 3))
    one, three = (saved_bytes(model, 2, 16, documents=1) for model in models)
    shape = shape_of(build("Mistral", 1, 2, torch.bfloat16, 8))
    assert shape.window == 8
    with_mask = layer_bytes(shape, MicroBatch(2, 16))
    assert with_mask == layer_bytes(replace(shape, window=16), MicroBatch(2, 16)) + 2 * 16 * 16 * 2
    joined = 2 * 16 * 4 * 16 * 2  # what a row of one document does not need
    planned = with_mask - joined - repeated_keys(shape, 2 * 16, 2)
    assert abs((three - one) // 2 - planned) <= 2 * 16 * 16  # the CPU keeps it as booleans or as scores


@pytest.mark.parametrize("element", [2, 4])
def test_recomputed_layers_keep_their_input_alone(element: int) -> None:
    models = [build("Llama", layers, 4, DTYPES[element]) for layers in (1, 3)]
    for model in models:
        model.train()
        recompute_activations(model)
    one, three = (saved_bytes(model, 2, 16) for model in models)
    batch = MicroBatch(2, 16, element)
    assert (three - one) // 2 == checkpoint_bytes(shape_of(models[0]), batch) == 2 * 16 * 48 * element


def test_autocast_keeps_an_fp32_stream_and_casts_of_inputs_and_weights() -> None:
    models = [build("Llama", layers, 4, torch.float32) for layers in (1, 3)]
    one, three = (saved_bytes(model, 3, 32, autocast=True) for model in models)
    shape = shape_of(models[0])
    batch = MicroBatch(3, 32, 2, autocast=True)
    matrices = sum(p.numel for p in shape.parameters if p.linear)
    assert (three - one) // 2 == layer_bytes(shape, batch) + 2 * matrices


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("down_proj",), ()])
def test_adapters_keep_their_inputs_and_what_lies_between_their_matrices(targets: tuple[str, ...]) -> None:
    from peft import LoraConfig, get_peft_model

    measured, shape = [], None
    for layers in (1, 3):
        model = build("Llama", layers, 4, torch.bfloat16)
        shape = shape_of(model)
        wanted = list(targets) or sorted({p.linear for p in shape.parameters if p.linear})
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=wanted)).to(torch.bfloat16)
        model.get_input_embeddings().weight.requires_grad_(True)  # so that gradients reach the first layer
        measured.append(saved_bytes(adapted, 2, 16))
    assert shape is not None
    training = Training(micro_batch_size=2, max_length=16, lora_rank=4, lora_targets=targets)
    planned = layer_bytes(shape, micro_batch_of(shape, PlanRequest(training=training)))
    assert (measured[1] - measured[0]) // 2 == pytest.approx(planned, rel=0.05)


def test_tensor_and_sequence_ranks_share_what_they_divide() -> None:
    shape = shape_of(build("Llama", 1, 4, torch.bfloat16))
    alone = layer_bytes(shape, MicroBatch(2, 16))
    stream = 2 * 16 * 2 * (4 * 48 + 4 + 2 * 48)  # two norms
    inputs = 2 * 16 * 2 * 2 * 48  # of attention and of the MLP, on every rank
    inside = alone - stream - inputs
    assert layer_bytes(shape, MicroBatch(2, 16, tp=2)) == stream + inputs + inside // 2
    assert layer_bytes(shape, MicroBatch(2, 16, tp=2, stream_split=2)) == stream // 2 + inputs + inside // 2
    assert layer_bytes(shape, MicroBatch(2, 16, stream_split=2, block_split=2)) == alone // 2


def test_logits_stand_in_memory_several_times() -> None:
    shape = shape_of(build("Llama", 1, 4, torch.bfloat16))
    assert logits_forward_bytes(shape, MicroBatch(1, 10), 96) == 10 * 96 * (2 + 4 + 4)
    assert logits_forward_bytes(shape, MicroBatch(2, 10), 96) == 20 * 96 * (2 + 2 + 4 + 4)
    assert logits_backward_bytes(shape, MicroBatch(2, 10), 48) == 20 * 48 * 12
