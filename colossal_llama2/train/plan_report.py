"""A memory plan for a reader: what it is of, the fullest moments by kind, the verdict, and what else would fit."""

from __future__ import annotations

import textwrap

from colossal_llama2.engine.memory_plan import CUDA_CONTEXT, FRAGMENTATION, GIB, MemoryPlan
from colossal_llama2.engine.moments import KINDS
from colossal_llama2.engine.plan_alternatives import CRITERION, Room
from colossal_llama2.engine.plan_request import Layout, Training
from colossal_llama2.model.model_shape import ModelShape

_MOST_ALTERNATIVES = 12


def report(shape: ModelShape, plan: MemoryPlan, others: list[MemoryPlan], room: Room) -> str:
    """Write the plan for a reader: the moments by kind, the verdict, host memory, and what else would fit."""
    lines = [
        f"{plan.parameters:,} parameters, {plan.trained:,} of them trained; {describe(plan)}",
        "",
        *_table(plan),
        "",
        _verdict(plan, room),
        *_host_lines(plan, room),
        "",
        *_alternative_lines(others, room),
    ]
    if not shape.has_llama_layers:
        lines.insert(
            1, f"activations are those of layers of Llama's kind, and {shape.model_type} has others: a rough guide"
        )
    if not shape.stored_bytes:
        lines.insert(1, "no safetensors files there: planned from config.json alone")
    return "\n".join(lines)


def describe(plan: MemoryPlan) -> str:
    """Say in one line what is planned."""
    layout, training = plan.request.layout, plan.request.training
    degrees = "".join(
        f" {name}{degree}" for name, degree in (("tp", layout.tp), ("pp", layout.pp), ("sp", layout.sp)) if degree > 1
    )
    return (
        f"{layout.plugin}{_offloaded(layout)}{degrees}, {_count(layout.nproc)}, {training.precision}, "
        f"{training.micro_batch_size} x {training.max_length} tokens at a time"
        + (", layers recomputed" if training.use_grad_checkpoint else "")
        + (f", {training.checkpoint_layers} layers recomputed" if training.checkpoint_layers else "")
        + (", FlashAttention" if training.use_flash_attn and training.precision != "fp32" else "")
    )


def _offloaded(layout: Layout) -> str:
    return f" {layout.offload_fraction:.0%}" if layout.offload_fraction < 1 else ""


def _recomputed(training: Training) -> str:
    some = f"{training.checkpoint_layers} layers" if training.checkpoint_layers else "no"
    return "all" if training.use_grad_checkpoint else some


def _count(ranks: int) -> str:
    return "1 rank" if ranks == 1 else f"{ranks} ranks"


def _table(plan: MemoryPlan) -> list[str]:
    """Kinds down, moments across: the loss, the fullest of the backward pass, and the update."""
    loss, *backward, update, _, _ = plan.moments
    shown = [loss, max(backward, key=lambda moment: moment.total), update]
    shown += [plan.fullest] if plan.fullest not in shown else []
    width = max(len(moment.name) for moment in shown) + 2
    where = f"GiB a rank of stage {plan.stage}, at" if plan.request.layout.pp > 1 else "GiB a rank, at"
    rows = [f"{where:<28}" + "".join(f"{moment.name:>{width}}" for moment in shown)]
    for kind in KINDS:
        values = [getattr(moment, kind) for moment in shown]
        if any(values):
            rows.append(f"{kind:<28}" + "".join(f"{value / GIB:>{width}.2f}" for value in values))
    rows.append(f"{'allocated':<28}" + "".join(f"{moment.total / GIB:>{width}.2f}" for moment in shown))
    return rows


def _verdict(plan: MemoryPlan, room: Room) -> str:
    needed, there = plan.needed / GIB, room.device_bytes / GIB
    allowances = (
        f"{plan.allocated / GIB:.2f} allocated, {plan.context / GIB:.2f} allowed for CUDA"
        f"{' and NCCL' if plan.context > CUDA_CONTEXT else ''}, {FRAGMENTATION:.0%} for fragmentation"
    )
    if not plan.fits(room.device_bytes):
        return f"does not fit: {needed:.1f} GiB needed ({allowances}), {there:.1f} GiB there"
    if not room.holds(plan):
        return f"does not fit: the device has room ({needed:.1f} of {there:.1f} GiB), the machine has not"
    return f"fits: {needed:.1f} of {there:.1f} GiB ({allowances}), {there - needed:.1f} GiB free"


def _host_lines(plan: MemoryPlan, room: Room) -> list[str]:
    host, ranks = plan.host, room.ranks_per_node
    limit = "" if room.host_bytes is None else f" of {room.host_bytes / GIB:.0f} there"
    lines = [
        f"host memory of a machine with {_count(ranks)}: {room.host_used(plan) / GIB:.1f} GiB{limit} "
        f"(a rank: {host.loading / GIB:.1f} while loading, {(host.training + host.update) / GIB:.1f} while training, "
        f"{host.process / GIB:.1f} allowed for the process)"
    ]
    if plan.elastic:
        lines.append(
            f"gemini_auto also keeps up to {plan.elastic / GIB:.1f} GiB of weights on the device where there is room"
        )
    return lines


def _alternative_lines(others: list[MemoryPlan], room: Room) -> list[str]:
    if not others:
        return ["nothing fits: more ranks, a shorter --max_length, LoRA or larger devices are what is left"]
    head = (
        f"{'plugin':<16}{'tp':>3}{'pp':>3}  {'recompute':<10}{'micro-batch':>11}{'GiB':>8}{'free':>8}{'host GiB':>10}"
    )
    rows = [*textwrap.wrap(f"what fits, with the largest micro-batch each has room for; {CRITERION}:", 118), head]
    for other in others[:_MOST_ALTERNATIVES]:
        layout, training = other.request.layout, other.request.training
        rows.append(
            f"{layout.plugin + _offloaded(layout):<16}{layout.tp:>3}{layout.pp:>3}  {_recomputed(training):<10}"
            f"{training.micro_batch_size:>11}{other.needed / GIB:>8.1f}"
            f"{(room.device_bytes - other.needed) / GIB:>8.1f}{room.host_used(other) / GIB:>10.1f}"
        )
    if len(others) > _MOST_ALTERNATIVES:
        rows.append(f"... and {len(others) - _MOST_ALTERNATIVES} more (all of them with --json)")
    return rows
