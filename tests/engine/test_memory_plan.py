"""The plan's peak is the step's, and its kinds are what a boosted session holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from colossal_llama2.engine import ranks
from colossal_llama2.engine.activation_memory import MicroBatch, layer_bytes
from colossal_llama2.engine.memory_plan import GIB, describe_actual, predict
from colossal_llama2.engine.plan_request import Layout, PlanRequest, Training
from colossal_llama2.engine.plugins import PluginName
from colossal_llama2.engine.state_memory import state_memory
from colossal_llama2.errors import InputError
from colossal_llama2.model.model_shape import ModelShape


@pytest.fixture
def process_group(monkeypatch: pytest.MonkeyPatch, training_memory: Any) -> Iterator[None]:
    """Make a process group of this process alone, its collectives named in the profile."""
    for name in ("reduce_scatter_tensor", "all_gather_into_tensor"):
        monkeypatch.setattr(torch.distributed, name, getattr(torch.distributed, name))  # put back afterwards
    ranks.launch(seed=0)
    training_memory.mark_collectives()
    yield
    ranks.close()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("plugin", ["zero2", "gemini", "ddp"])
def test_a_step_takes_what_was_planned(
    process_group: None, training_memory: Any, plugin: PluginName, recompute: bool
) -> None:
    case = training_memory.Case(
        plugin=plugin,
        recompute=recompute,
        rows=4,
        length=48,
        hidden=48,
        intermediate=128,
        layers=3,
        heads=3,
        vocab=512,
        accumulation=2 if recompute else 1,
    )
    measured = training_memory.measure(case)
    shape = training_memory.case_shape(case)
    state, plan = state_memory(shape, case.request), predict(shape, case.request)
    assert plan.trained == plan.parameters == shape.numel
    assert measured["weights"] == state.weights
    assert measured["optimizer"] == state.optimizer
    assert measured["gradients"] == state.gradients
    assert plan.allocated == pytest.approx(measured["peak"], rel=0.15)


def test_the_peak_is_a_moment_and_not_a_sum_of_peaks(tiny_shape: ModelShape) -> None:
    plan = predict(tiny_shape, PlanRequest(training=Training(max_length=64)))
    assert len(plan.moments) > 3
    assert plan.allocated == max(moment.total for moment in plan.moments)
    assert plan.fullest.name == "the loss"
    # weights 2, masters and moments 12 bytes; two layers; the ends; 12 bytes a score, 10 of them in forward
    layer = 64 * (2 * (4 * 8 + 4 + 2 * 8) + 2 * 2 * 8 + 2 * (8 + 2 * 8 + 2 * 8) + 4 * 2 + 4 * 2 * 16)
    ends = 64 * (24 + 2 * 2 * 4 + (4 * 8 + 4 + 2 * 8) + 2 * 8)
    assert plan.fullest.activations == 2 * layer + ends
    assert plan.fullest.logits == 64 * 32 * 12
    assert plan.allocated == 14 * 1704 + 2 * layer + ends + 64 * 32 * 12
    assert plan.needed == plan.allocated + plan.context + plan.fragmentation


def test_accumulated_gradients_are_there_when_the_next_micro_batch_comes(tiny_shape: ModelShape) -> None:
    once, twice = (
        predict(tiny_shape, PlanRequest(training=Training(max_length=64, accumulation_steps=steps))) for steps in (1, 2)
    )
    assert twice.fullest.gradients - once.fullest.gradients == 2 * 1704


def test_more_ranks_rows_and_recomputation_change_the_plan_in_the_right_direction(tiny_shape: ModelShape) -> None:
    training = Training(micro_batch_size=2, max_length=64)
    plan = predict(tiny_shape, PlanRequest(training=training))
    assert predict(tiny_shape, PlanRequest(Layout(nproc=8), training)).allocated < plan.allocated
    assert predict(tiny_shape, PlanRequest(training=replace(training, micro_batch_size=3))).allocated > plan.allocated
    recomputed = predict(tiny_shape, PlanRequest(training=replace(training, use_grad_checkpoint=True)))
    assert recomputed.allocated < plan.allocated


def test_the_fullest_stage_of_a_pipeline_is_planned(tiny_shape: ModelShape) -> None:
    layout = Layout("3d", 2, pp=2, zero=0)
    plan = predict(tiny_shape, PlanRequest(layout, Training("fp32", max_length=64, accumulation_steps=4)))
    last = state_memory(tiny_shape, PlanRequest(layout, Training("fp32")), stage=1)
    assert last.weights == 4 * (592 + 8 + 256)
    # On the first stage two micro-batches wait, with their hidden states at its door; the last has the logits of one.
    loss = plan.moments[0]
    layer = layer_bytes(tiny_shape, MicroBatch(1, 64, element=4))
    assert plan.stage == 0
    assert loss.logits == 0
    assert loss.activations == 2 * (layer + 64 * 24) + 2 * 2 * 64 * 8 * 4
    assert plan.parameters == 1704


def test_host_memory_counts_loading_and_what_is_offloaded(tiny_shape: ModelShape) -> None:
    shape = replace(tiny_shape, stored_bytes=2 * 1704, stored_dtype="float16")
    same = predict(shape, PlanRequest(Layout("zero2", 4), Training("fp16"))).host
    rounded = predict(shape, PlanRequest(Layout("zero2_cpu", 4), Training("bf16"))).host
    assert same.loading == 2 * 1704
    assert rounded.loading == 4 * 1704  # as stored and as cast
    assert same.training == 0
    assert rounded.training == 3 * 1704


def test_predicted_and_actual_stand_in_one_line(tiny_shape: ModelShape) -> None:
    plan = predict(tiny_shape, PlanRequest())
    line = describe_actual(plan, 2 * plan.allocated)
    assert "(-50%)" in line
    assert f"{plan.allocated / GIB:.2f} GiB predicted (at the loss)" in line


@pytest.mark.parametrize(
    ("layout", "training", "reason"),
    [
        (Layout("gemini"), Training("fp32"), "bf16, or --plugin zero2"),
        (Layout("gemini"), Training(lora_rank=8), "LoRA"),
        (Layout("zero2", 2, tp=2), Training(), "or pass --plugin 3d"),
        (Layout("3d", 3, tp=2), Training(), "3 ranks cannot be divided by pp 1 x tp 2 x sp 1"),
        (Layout("3d", 2, tp=2), Training(), "1 key-value heads"),
        (Layout("3d", 1), Training("fp32"), "--zero 0"),
        (Layout("3d", 4, pp=4, zero=0), Training(), "only 2 layers"),
        (Layout("3d", 2, pp=2, zero=2), Training(), "--zero 1"),
        (Layout("3d", 2, sp=2, sp_mode="split_gather"), Training(), "--sp_mode all_to_all"),
        (Layout(nproc=0), Training(), "--nproc is 0"),
        (Layout(), Training(micro_batch_size=0), "--micro_batch_size is 0"),
        (Layout(), Training(max_length=1), "--max_length is 1"),
        (Layout(), Training(lora_rank=-1), "--lora_rank is -1"),
        (Layout(), Training(lora_rank=8, lora_targets=("nothing",)), "choose among down_proj"),
    ],
)
def test_what_no_run_could_do_is_refused(
    tiny_shape: ModelShape, layout: Layout, training: Training, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        predict(tiny_shape, PlanRequest(layout, training))
