"""What is to be planned: a model's training, its plugin and the machines, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from colossal_llama2.engine.activation_memory import FULL, HALF, KeptInputs, MicroBatch
from colossal_llama2.errors import InputError
from colossal_llama2.model.model_shape import ModelShape, ParameterShape

Plugin = Literal["gemini", "gemini_auto", "zero2", "zero2_cpu", "ddp", "3d"]
PlannedPrecision = Literal["fp16", "bf16", "fp32"]
SpMode = Literal["split_gather", "all_to_all"]
_ATTENTION, _ATTENTION_OUT = {"q_proj", "k_proj", "v_proj", "qkv_proj"}, {"o_proj"}
_MLP, _MLP_OUT = {"gate_proj", "up_proj", "gate_up_proj"}, {"down_proj"}
_STAGED = {"llama", "mistral", "qwen2", "qwen3"}  # those that 3d lets into a pipeline


@dataclass(frozen=True)
class Layout:
    """How the ranks are divided.

    Attributes:
        plugin: ColossalAI plugin, by the name `train.py` gives it.
        nproc: ranks of the whole job.
        tp, pp, sp: degrees of tensor, pipeline and sequence parallelism (3d).
        sp_mode: split_gather shares the sequence among the tensor-parallel ranks, all_to_all among ranks of its own.
        zero: ZeRO stage inside 3d.
    """

    plugin: Plugin = "zero2"
    nproc: int = 1
    tp: int = 1
    pp: int = 1
    sp: int = 1
    sp_mode: SpMode = "all_to_all"
    zero: int = 1

    @property
    def own_sequence_ranks(self) -> int:
        """Sequence-parallel ranks that are not tensor-parallel ranks at the same time."""
        return self.sp if self.sp_mode == "all_to_all" else 1

    @property
    def data_ranks(self) -> int:
        """Ranks that see different rows."""
        return self.nproc // (self.tp * self.pp * self.own_sequence_ranks)

    @property
    def sharing_ranks(self) -> int:
        """Ranks with the same weights, among which ZeRO divides what it divides."""
        return self.data_ranks * self.own_sequence_ranks


@dataclass(frozen=True)
class Training:
    """What is trained, and on how much at a time.

    Attributes:
        precision: what forward and backward compute in.
        micro_batch_size: rows a rank computes at a time.
        accumulation_steps: micro-batches before a step.
        max_length: tokens of a row.
        use_grad_checkpoint: layers are computed again in the backward pass.
        use_flash_attn: variable-length FlashAttention; taken in half precision alone.
        freeze_non_embeds_params: train input embedding and head alone.
        lora_rank: rank of the adapters, 0 for none.
        lora_dropout: share of their inputs that is dropped.
        lora_targets: last names of the linears that get one; none for every linear layer but the head.
        lora_train_embeddings: train input embedding and head in full beside the adapters.
    """

    precision: PlannedPrecision = "bf16"
    micro_batch_size: int = 1
    accumulation_steps: int = 1
    max_length: int = 4096
    use_grad_checkpoint: bool = False
    use_flash_attn: bool = False
    freeze_non_embeds_params: bool = False
    lora_rank: int = 0
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ()
    lora_train_embeddings: bool = False

    @property
    def element(self) -> int:
        """Bytes of an element that is computed in."""
        return FULL if self.precision == "fp32" else HALF

    def adapts(self, parameter: ParameterShape) -> bool:
        """Tell whether a parameter is the weight of a linear layer that gets an adapter."""
        wanted = not self.lora_targets or parameter.linear in self.lora_targets
        return bool(self.lora_rank and parameter.linear and wanted)


@dataclass(frozen=True)
class PlanRequest:
    """A layout and a training."""

    layout: Layout = field(default_factory=Layout)
    training: Training = field(default_factory=Training)

    @property
    def accumulates(self) -> bool:
        """A step has more than one micro-batch."""
        return self.training.accumulation_steps > 1


@dataclass(frozen=True)
class Held:
    """A parameter, or the part of one, that a pipeline stage of a tensor-parallel rank computes with.

    Attributes:
        numel: its elements.
        trained: it learns.
        role: as in `ParameterShape`.
        layer: its decoder layer's number, None outside.
        is_matrix: it has two dimensions.
    """

    numel: int
    trained: bool
    role: str
    layer: int | None
    is_matrix: bool


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
    _check_plugin(layout, training)
    if layout.plugin == "3d":
        _check_mesh(shape, request)
    if training.lora_rank and not any(training.adapts(p) for p in shape.parameters):
        known = sorted({p.linear for p in shape.parameters if p.linear})
        raise InputError(
            f"--lora_targets names no linear of this model ({' '.join(training.lora_targets)})",
            remedy=f"choose among {' '.join(known)}",
        )


def _check_plugin(layout: Layout, training: Training) -> None:
    gemini = layout.plugin in ("gemini", "gemini_auto")
    if gemini and training.precision == "fp32":
        raise InputError(
            f"--plugin {layout.plugin} computes in fp16 or bf16 alone, and --mixed_precision is fp32",
            remedy="pass --mixed_precision bf16, or --plugin zero2",
        )
    if gemini and training.lora_rank:
        raise InputError(f"--plugin {layout.plugin} does not do LoRA", remedy="pass --plugin zero2 or zero2_cpu")
    if layout.plugin != "3d":
        for flag in ("tp", "pp", "sp"):
            if getattr(layout, flag) != 1:
                raise InputError(
                    f"--{flag} {getattr(layout, flag)} with --plugin {layout.plugin}, which holds every layer whole",
                    remedy=f"leave --{flag} at 1, or pass --plugin 3d",
                )


def _check_mesh(shape: ModelShape, request: PlanRequest) -> None:
    layout, training = request.layout, request.training
    degrees = layout.tp * layout.pp * layout.own_sequence_ranks
    if layout.nproc % degrees:
        raise InputError(
            f"--nproc {layout.nproc} is not divisible by tp x pp x sp = {degrees}",
            remedy=f"give a multiple of {degrees} ranks, or lower degrees",
        )
    if layout.sp > 1 and layout.sp_mode == "split_gather" and layout.sp != layout.tp:
        raise InputError(
            f"--sp {layout.sp} with --sp_mode split_gather shares the sequence among the {layout.tp} ranks of --tp",
            remedy=f"pass --sp {layout.tp}, or --sp_mode all_to_all",
        )
    if not 0 <= layout.zero <= 2:
        raise InputError(f"--zero is {layout.zero}", remedy="give 0, 1 or 2")
    if layout.zero and training.precision == "fp32":
        raise InputError(f"--zero {layout.zero} in fp32 is not to be had in 3d", remedy="pass --zero 0, or bf16")
    if layout.pp > 1 and layout.zero == 2:
        raise InputError("--zero 2 with a pipeline is not to be had", remedy="pass --zero 1")
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


def layers_of_stages(num_layers: int, stages: int) -> list[range]:
    """Divide layers over pipeline stages as ColossalAI does: evenly, and what is left over goes to the middle ones."""
    counts = [num_layers // stages] * stages
    left = num_layers % stages
    for stage in range(stages // 2 - left // 2, stages // 2 - left // 2 + left):
        counts[stage] += 1
    return [range(sum(counts[:stage]), sum(counts[: stage + 1])) for stage in range(stages)]


def padded_vocab(shape: ModelShape, tp: int) -> int:
    """Return the rows of the vocabulary once tensor parallelism has padded them to be divided."""
    return -(-shape.vocab // tp) * tp


def held_parameters(shape: ModelShape, request: PlanRequest, stage: int) -> list[Held]:
    """List what one rank of a pipeline stage computes with, adapters among it, in the model's order."""
    layout, training = request.layout, request.training
    layers = layers_of_stages(shape.layers, layout.pp)[stage]
    held: list[Held] = []
    for parameter in shape.parameters:
        if not _is_on_stage(parameter, shape, layout, stage, layers):
            continue
        numel = parameter.numel
        if layout.tp > 1 and parameter.tp_style:
            if parameter.tp_style == "vocab":
                numel = numel // parameter.shape[0] * padded_vocab(shape, layout.tp)
            numel //= layout.tp
        is_matrix = len(parameter.shape) == 2
        held.append(Held(numel, is_trained(parameter, training), parameter.role, parameter.layer, is_matrix))
        if training.adapts(parameter):
            for width in reversed(parameter.shape):  # A: [rank, in], B: [out, rank]; whole on every rank
                held.append(Held(training.lora_rank * width, True, "layer", parameter.layer, True))
    return held


def is_trained(parameter: ParameterShape, training: Training) -> bool:
    """Tell whether a parameter of the model itself learns."""
    at_ends = parameter.role in ("embedding", "head")
    if training.lora_rank:
        return at_ends and training.lora_train_embeddings
    return at_ends or not training.freeze_non_embeds_params


def _is_on_stage(parameter: ParameterShape, shape: ModelShape, layout: Layout, stage: int, layers: range) -> bool:
    if parameter.layer is not None:
        return parameter.layer in layers
    if parameter.role == "embedding":  # a tied one is also the last stage's head
        return stage == 0 or (shape.tied and stage == layout.pp - 1)
    return stage == layout.pp - 1


def micro_batch_of(shape: ModelShape, request: PlanRequest) -> MicroBatch:
    """Return what a rank computes at a time, as the arithmetic of activations takes it."""
    layout, training = request.layout, request.training
    half = training.precision != "fp32"
    shares_sequence = layout.sp > 1
    return MicroBatch(
        rows=training.micro_batch_size,
        length=training.max_length,
        element=training.element,
        autocast=layout.plugin == "ddp" and half,
        flash=training.use_flash_attn and half,
        recompute=training.use_grad_checkpoint,
        kept=_kept_inputs(shape, training),
        tp=layout.tp,
        stream_split=layout.sp if shares_sequence else 1,
        block_split=layout.own_sequence_ranks,
    )


def _kept_inputs(shape: ModelShape, training: Training) -> KeptInputs:
    if not training.lora_rank:
        trained = not training.freeze_non_embeds_params
        return KeptInputs(*[trained] * 5)
    adapted = [p for p in shape.parameters if p.layer == 0 and training.adapts(p)]
    if training.lora_dropout:  # every adapter has its own dropped copy of the input, and a mask
        return replace(
            KeptInputs(*[False] * 5),
            adapter_width=len(adapted) * training.lora_rank,
            dropped_width=sum(p.shape[1] for p in adapted),
        )
    targets = {p.linear for p in adapted}
    return KeptInputs(
        attention=bool(targets & _ATTENTION),
        attention_out=bool(targets & _ATTENTION_OUT),
        mlp=bool(targets & _MLP),
        mlp_out=bool(targets & _MLP_OUT),
        norms=False,
        adapter_width=len(adapted) * training.lora_rank,
    )
