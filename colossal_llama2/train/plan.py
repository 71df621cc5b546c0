"""`tools/plan.py`: what a run will take of every device and machine, before anything is paid for."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from colossal_llama2.cli import comma_separated
from colossal_llama2.engine.activation_budget import within_budget
from colossal_llama2.engine.memory_plan import GIB, MemoryPlan, predict
from colossal_llama2.engine.plan_alternatives import Room, alternatives
from colossal_llama2.engine.plan_request import Layout, PlanRequest, Training
from colossal_llama2.engine.plugins import PluginName, Precision, SequenceMode
from colossal_llama2.errors import InputError
from colossal_llama2.model.lora import embeddings_learn
from colossal_llama2.model.model_shape import read_model_shape
from colossal_llama2.outputs import refuse_existing, whole_file
from colossal_llama2.train.plan_report import report
from colossal_llama2.train.settings import StageSettings

EXIT_DOES_NOT_FIT = 1
_DEFAULT_DEVICE_MEMORY = 80.0


@dataclass(frozen=True)
class PlanSettings:
    """Plan the memory of a training run from config.json and safetensors headers; no weights are loaded.

    All sizes are GiB of 2**30 bytes, which is what makers of cards mean by 80 GB.
    """

    pretrained: Path
    """Model folder; config.json is enough."""
    nproc: int = 1
    """Ranks of the whole job, one a device."""
    ranks_per_node: int | None = None
    """Ranks that share a machine (default: 8, or all of fewer)."""
    device_memory: float | None = None
    """Memory of a device in GiB (default: that of the device here, or 80)."""
    host_memory: float | None = None
    """Memory of a machine in GiB; where it is given, it is a reason against a plan as well."""
    plugin: PluginName = "zero2"
    """ColossalAI plugin, as train.py takes it."""
    mixed_precision: Precision = "fp16"
    """What forward and backward compute in."""
    tp: int = 1
    """Degree of tensor parallelism (3d)."""
    pp: int = 1
    """Degree of pipeline parallelism (3d)."""
    sp: int = 1
    """Degree of sequence parallelism (3d)."""
    sp_mode: SequenceMode = "all_to_all"
    """How the sequence is divided: split_gather among the ranks of --tp, all_to_all among ranks of its own."""
    zero: int = 1
    """ZeRO stage inside 3d."""
    offload_fraction: float = 1.0
    """Share of master weights and moments that zero2_cpu keeps in host memory."""
    micro_batch_size: int = 1
    """Rows a rank computes at a time."""
    accumulation_steps: int = 1
    """Micro-batches before an optimizer step; with more than one, gradients wait while the next is computed."""
    max_length: int = 4096
    """Tokens of a row."""
    use_grad_checkpoint: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    checkpoint_layers: int = 0
    """Recompute those of so many decoder layers alone."""
    use_flash_attn: bool = False
    """Variable-length FlashAttention; taken in fp16 and bf16."""
    freeze_non_embeds_params: bool = False
    """Train the input embedding and the output head alone."""
    lora_rank: int = 0
    """Rank of LoRA adapters; 0 for none."""
    lora_dropout: float = 0.0
    """Share of an adapter's inputs dropped in training."""
    lora_targets: str = ""
    """Linear layers that get an adapter, comma-separated: q_proj,v_proj (default: all but the output head)."""
    lora_train_embeddings: Literal["auto", "yes", "no"] = "auto"
    """Train embedding and head in full beside the adapters; auto does so where the vocabulary was expanded (the model
    folder holds an expansion.json)."""
    json: Path | None = None
    """File for everything as JSON, in bytes."""
    overwrite: bool = False
    """Replace that file if it exists."""
    check: bool = False
    """Exit with 1 when the run does not fit; otherwise a plan that could be made is a success."""

    @property
    def request(self) -> PlanRequest:
        """What is asked of the engine."""
        degrees = (self.tp, self.pp, self.sp)
        layout = Layout(self.plugin, self.nproc, *degrees, self.sp_mode, self.zero, self.offload_fraction)
        training = Training(
            precision=self.mixed_precision,
            micro_batch_size=self.micro_batch_size,
            accumulation_steps=self.accumulation_steps,
            max_length=self.max_length,
            use_grad_checkpoint=self.use_grad_checkpoint,
            checkpoint_layers=self.checkpoint_layers,
            defers_head=True,
            use_flash_attn=self.use_flash_attn,
            freeze_non_embeds_params=self.freeze_non_embeds_params,
            lora_rank=self.lora_rank,
            lora_dropout=self.lora_dropout,
            lora_targets=tuple(comma_separated(self.lora_targets)),
            lora_train_embeddings=embeddings_learn(self.lora_train_embeddings, self.pretrained),
        )
        return PlanRequest(layout, training)


def request_of_run(settings: StageSettings, nproc: int) -> PlanRequest:
    """Return the plan's view of a training run, so that its log can set the prediction beside what it took.

    Args:
        settings: the run's.
        nproc: its ranks.
    """
    parallel, data, model = settings.parallel, settings.data, settings.model
    degrees = (parallel.tp, parallel.pp, parallel.sp)
    layout = Layout(
        parallel.plugin,
        nproc,
        *degrees,
        parallel.sp_mode,
        zero=parallel.zero,
        offload_fraction=parallel.offload_fraction,
    )
    training = Training(
        precision=parallel.mixed_precision,
        micro_batch_size=data.micro_batch_size,
        accumulation_steps=data.accumulation_steps,
        max_length=data.max_length,
        use_grad_checkpoint=model.use_grad_checkpoint,
        checkpoint_layers=model.checkpoint_layers,
        defers_head=True,
        use_flash_attn=model.use_flash_attn and torch.cuda.is_available(),
        freeze_non_embeds_params=model.freeze_non_embeds_params or model.train_new_rows_only,
        lora_rank=settings.lora.lora_rank,
        lora_dropout=settings.lora.lora_dropout,
        lora_targets=tuple(comma_separated(settings.lora.lora_targets)),
        lora_train_embeddings=embeddings_learn(settings.lora.lora_train_embeddings, model.pretrained),
    )
    return PlanRequest(layout, training)


def predict_run(settings: StageSettings, nproc: int, max_length: int) -> MemoryPlan | str:
    """Predict the memory of a training run, from its model's folder alone.

    Args:
        settings: the run's.
        nproc: its ranks.
        max_length: of the rows that it trains on, in tokens.

    Returns:
        The plan, or why there is none: a run that the planner cannot follow is no worse for it.
    """
    asked = request_of_run(settings, nproc)
    request = replace(asked, training=replace(asked.training, max_length=max_length))
    try:
        shape = read_model_shape(settings.model.pretrained)
        return predict(shape, within_budget(shape, request, settings.model.activation_budget))
    except InputError as error:
        return str(error)


def main(settings: PlanSettings) -> int:
    """Print the plan; return 0, or 1 with --check when it does not fit."""
    room = _room(settings)
    if settings.json is not None:
        refuse_existing(settings.json, settings.overwrite)
    shape = read_model_shape(settings.pretrained)
    plan = predict(shape, settings.request)
    others = alternatives(shape, settings.request, room)
    print(report(shape, plan, others, room))
    fits = room.holds(plan)
    if settings.json is not None:
        content = {"fits": fits, "plan": plan.as_json(), "alternatives": [other.as_json() for other in others]}
        with whole_file(settings.json, settings.overwrite) as work:
            work.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return EXIT_DOES_NOT_FIT if settings.check and not fits else 0


def _room(settings: PlanSettings) -> Room:
    for name, value in (("device_memory", settings.device_memory), ("host_memory", settings.host_memory)):
        if value is not None and value <= 0:
            raise InputError(f"--{name} is {value}", remedy="give GiB")
    per_node = settings.ranks_per_node if settings.ranks_per_node is not None else min(settings.nproc, 8)
    if settings.ranks_per_node is not None and settings.ranks_per_node < 1:
        raise InputError(f"--ranks_per_node is {per_node}", remedy="give at least 1")
    if settings.device_memory is not None:
        device = int(settings.device_memory * GIB)
    elif torch.cuda.is_available():
        device = int(torch.cuda.get_device_properties(0).total_memory)
    else:
        device = int(_DEFAULT_DEVICE_MEMORY * GIB)
    host = None if settings.host_memory is None else int(settings.host_memory * GIB)
    return Room(device, host, max(per_node, 1))
