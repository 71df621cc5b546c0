"""What no run could do is refused by the planner with the reason, and the nearest thing that works."""

from __future__ import annotations

from colossal_llama2.engine.plan_request import Layout, PlanRequest
from colossal_llama2.engine.plugins import check_plugin
from colossal_llama2.errors import InputError
from colossal_llama2.model.model_shape import ModelShape

_STAGED = {"llama", "mistral", "qwen2", "qwen3"}  # those that 3d lets into a pipeline


def check_request(shape: ModelShape, request: PlanRequest) -> None:
    """Refuse what no run could do.

    Raises:
        InputError: naming the flag.
    """
    layout, training = request.layout, request.training
    for name, value in (
        ("nproc", layout.nproc),
        ("tp", layout.tp),
        ("pp", layout.pp),
        ("sp", layout.sp),
        ("micro_batch_size", training.micro_batch_size),
        ("accumulation_steps", training.accumulation_steps),
    ):
        if value < 1:
            raise InputError(f"--{name} is {value}", remedy="give at least 1")
    if training.max_length < 2:
        raise InputError(f"--max_length is {training.max_length}", remedy="give at least 2")
    if training.lora_rank < 0:
        raise InputError(f"--lora_rank is {training.lora_rank}", remedy="give a rank, or 0 for no adapters")
    if not 0 <= training.lora_dropout < 1:
        raise InputError(f"--lora_dropout is {training.lora_dropout}", remedy="give a number from 0 to below 1")
    check_plugin(request.plugin_settings)
    request.plugin_settings.mesh(0, layout.nproc)
    if layout.plugin in ("gemini", "gemini_auto") and training.lora_rank:
        raise InputError(f"--plugin {layout.plugin} does not do LoRA", remedy="pass --plugin zero2 or zero2_cpu")
    if layout.plugin == "3d":
        _check_division(shape, layout)
    if training.lora_rank and not any(training.adapts(p) for p in shape.parameters):
        known = sorted({p.linear for p in shape.parameters if p.linear})
        raise InputError(
            f"--lora_targets names no linear of this model ({' '.join(training.lora_targets)})",
            remedy=f"choose among {' '.join(known)}",
        )


def _check_division(shape: ModelShape, layout: Layout) -> None:
    divisor = layout.tp * layout.own_sequence_ranks
    if shape.heads % divisor or shape.kv_heads % divisor:
        raise InputError(
            f"{shape.heads} heads and {shape.kv_heads} key-value heads, which tp x sp = {divisor} does not divide",
            remedy="lower --tp or --sp",
        )
    if layout.tp > 1 and not shape.has_tp_plan:
        raise InputError(
            f"{shape.model_type} publishes no tensor-parallel plan", remedy="leave --tp at 1; zero2 and gemini train it"
        )
    if layout.pp > 1 and shape.model_type not in _STAGED:
        raise InputError(
            f"{shape.model_type} has not been proved in a pipeline (proved: {', '.join(sorted(_STAGED))})",
            remedy="leave --pp at 1; zero2 and gemini train it",
        )
    if layout.pp > shape.layers:
        raise InputError(f"--pp {layout.pp} and only {shape.layers} layers", remedy="lower --pp")
