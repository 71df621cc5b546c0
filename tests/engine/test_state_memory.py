"""Weights, optimizer and gradients by hand, for a model of 1,704 parameters."""

from __future__ import annotations

from typing import Any

import pytest

from colossal_llama2.engine import state_memory as state_memory_module
from colossal_llama2.engine.plan_request import Layout, PlanRequest, Training
from colossal_llama2.engine.plugins import PluginName
from colossal_llama2.engine.state_memory import rounds_weights, state_memory
from colossal_llama2.model.model_shape import ModelShape

TRAINED, FROZEN_LAYERS = 1704, 1192


def planned(
    shape: ModelShape, plugin: PluginName, ranks: int, precision: Any = "bf16", **others: Any
) -> tuple[int, ...]:
    layout = {name: others.pop(name) for name in ("tp", "pp", "sp", "sp_mode", "zero") if name in others}
    request = PlanRequest(Layout(plugin, ranks, **layout), Training(precision, **others))
    state = state_memory(shape, request)
    return state.weights, state.optimizer, state.gradients


@pytest.mark.parametrize(
    ("plugin", "ranks", "precision", "expected"),
    [
        ("zero2", 1, "bf16", (2 * TRAINED, 12 * TRAINED, 2 * TRAINED)),
        ("zero2", 4, "bf16", (2 * TRAINED, 3 * TRAINED, TRAINED // 2)),
        ("zero2", 1, "fp32", (4 * TRAINED, 12 * TRAINED, 4 * TRAINED)),  # masters are made of fp32 weights too
        ("zero2_cpu", 4, "bf16", (2 * TRAINED, 0, TRAINED // 2)),
        ("ddp", 4, "bf16", (4 * TRAINED, 8 * TRAINED, 4 * TRAINED)),
        ("3d", 1, "fp32", (4 * TRAINED, 8 * TRAINED, 4 * TRAINED)),
        ("3d", 1, "bf16", (2 * TRAINED, 12 * TRAINED, 2 * TRAINED)),
        ("3d", 4, "bf16", (2 * TRAINED, 3 * TRAINED, 2 * TRAINED)),  # ZeRO 1: gradients whole
    ],
)
def test_bytes_of_a_rank(
    tiny_shape: ModelShape, plugin: PluginName, ranks: int, precision: Any, expected: tuple[int, ...]
) -> None:
    zero = 0 if precision == "fp32" else 1
    assert planned(tiny_shape, plugin, ranks, precision, zero=zero) == expected


def test_ddp_keeps_a_second_place_for_every_gradient(tiny_shape: ModelShape) -> None:
    request = PlanRequest(Layout("ddp", 2))
    assert state_memory(tiny_shape, request).buffers == 4 * TRAINED


def test_what_is_frozen_has_weights_alone(tiny_shape: ModelShape) -> None:
    ends = TRAINED - FROZEN_LAYERS
    weights, optimizer, gradients = planned(tiny_shape, "zero2", 2, freeze_non_embeds_params=True)
    assert (weights, optimizer, gradients) == (2 * TRAINED, 6 * ends, ends)


def test_adapters_are_what_learns(tiny_shape: ModelShape) -> None:
    # q: 3 x (8 + 8), v: 3 x (8 + 4), in both layers
    adapters = 2 * 3 * (16 + 12)
    weights, optimizer, gradients = planned(
        tiny_shape, "zero2", 1, lora_rank=3, lora_targets=("q_proj", "v_proj"), lora_train_embeddings=True
    )
    ends = 2 * 256
    assert weights == 2 * (TRAINED + adapters)
    assert (optimizer, gradients) == (12 * (adapters + ends), 2 * (adapters + ends))


def test_tensor_ranks_divide_matrices_and_not_norms(tiny_shape: ModelShape) -> None:
    norms = 5 * 8
    shape = ModelShape(**{**vars(tiny_shape), "kv_heads": 2})
    weights, _, _ = planned(shape, "3d", 2, tp=2, zero=0)
    assert weights == 2 * ((TRAINED - norms) // 2 + norms)


def test_offloaded_states_are_in_host_memory(tiny_shape: ModelShape) -> None:
    state = state_memory(tiny_shape, PlanRequest(Layout("zero2_cpu", 4)))
    assert state.optimizer_host == 12 * TRAINED // 4
    # one piece: gradients in fp32, and the largest one as it came
    assert state.update_host == 4 * TRAINED // 4 + 2 * 256 // 4
    half = state_memory(tiny_shape, PlanRequest(Layout("zero2_cpu", 4, offload_fraction=0.5)))
    assert 0.3 * state.optimizer_host < half.optimizer_host < 0.7 * state.optimizer_host
    assert half.optimizer + half.optimizer_host == state.optimizer_host


def test_the_update_copies_one_piece_and_not_the_model(tiny_shape: ModelShape, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_memory(tiny_shape, PlanRequest()).update == 4 * TRAINED
    monkeypatch.setattr(state_memory_module, "PIECE", 300)
    assert state_memory(tiny_shape, PlanRequest()).update == max(4 * 300, 8 * 256)


def test_what_gemini_auto_moves_is_in_host_memory(tiny_shape: ModelShape) -> None:
    auto = state_memory(tiny_shape, PlanRequest(Layout("gemini_auto", 1)))
    assert auto.optimizer == 0
    assert auto.optimizer_host >= 12 * TRAINED
    assert auto.weights_host >= 2 * TRAINED


def test_accumulating_gemini_keeps_gradients_beside_weights(tiny_shape: ModelShape) -> None:
    alone = state_memory(tiny_shape, PlanRequest(Layout("gemini", 2)))
    accumulating = state_memory(tiny_shape, PlanRequest(Layout("gemini", 2), Training(accumulation_steps=2)))
    assert alone.gradients == 0
    assert accumulating.gradients == accumulating.weights == alone.weights >= TRAINED


@pytest.mark.parametrize(
    ("stored", "precision", "loses"),
    [("float16", "bf16", True), ("bfloat16", "fp16", True), ("float32", "bf16", True), ("float16", "fp32", False)],
)
def test_casts_that_lose_bits(stored: str, precision: str, loses: bool) -> None:
    assert rounds_weights(stored, precision) is loses
