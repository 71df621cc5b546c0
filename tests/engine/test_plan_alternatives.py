"""Alternatives fit, are the largest of their kind, and come best first."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from colossal_llama2.engine.memory_plan import GIB, predict
from colossal_llama2.engine.plan_alternatives import Room, alternatives
from colossal_llama2.engine.plan_request import Layout, PlanRequest, Training
from colossal_llama2.model.model_shape import ModelShape

KIB = 1 << 10


def room_for(shape: ModelShape, request: PlanRequest, kib: int, host: int | None = None) -> Room:
    """Leave a number of KiB beside the allowances."""
    return Room(predict(shape, request).context + kib * KIB, host, 4)


@pytest.fixture
def request_of_four(tiny_shape: ModelShape) -> PlanRequest:
    return PlanRequest(Layout(nproc=4), Training(max_length=64, accumulation_steps=2))


def test_all_of_them_fit_and_twice_the_rows_would_not(tiny_shape: ModelShape, request_of_four: PlanRequest) -> None:
    room = room_for(tiny_shape, request_of_four, 300)
    found = alternatives(tiny_shape, request_of_four, room)
    assert len(found) > 5
    limited = 0
    for plan in found:
        assert room.holds(plan)
        training = plan.request.training
        if training.micro_batch_size < 64:
            wider = replace(training, micro_batch_size=2 * training.micro_batch_size)
            assert not room.holds(predict(tiny_shape, PlanRequest(plan.request.layout, wider)))
            limited += 1
    assert limited > 5


def test_offloading_comes_last_and_recomputing_after_keeping(
    tiny_shape: ModelShape, request_of_four: PlanRequest
) -> None:
    found = alternatives(tiny_shape, request_of_four, room_for(tiny_shape, request_of_four, 300))
    order = [
        (p.request.layout.plugin in ("zero2_cpu", "gemini_auto"), p.request.training.use_grad_checkpoint) for p in found
    ]
    assert len(set(order)) == 4
    assert all(first <= second for first, second in pairwise(order))


def test_nothing_fits_into_nothing(tiny_shape: ModelShape, request_of_four: PlanRequest) -> None:
    assert alternatives(tiny_shape, request_of_four, Room(KIB, None, 4)) == []


def test_a_machine_without_room_rules_everything_out(tiny_shape: ModelShape, request_of_four: PlanRequest) -> None:
    assert alternatives(tiny_shape, request_of_four, room_for(tiny_shape, request_of_four, 300, host=GIB)) == []


def test_what_a_plugin_cannot_do_is_not_offered(tiny_shape: ModelShape) -> None:
    request = PlanRequest(Layout(nproc=2), Training("fp32", max_length=64))
    found = alternatives(tiny_shape, request, Room(80 * GIB, None, 2))
    assert found
    assert {plan.request.layout.plugin for plan in found} == {"ddp", "zero2", "zero2_cpu"}  # one key-value head: no tp
