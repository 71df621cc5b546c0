"""What is to be planned: a model's training, its plugin and the machines, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from colossal_llama2.engine.activation_memory import FULL, HALF, KeptInputs, MicroBatch
from colossal_llama2.engine.plugins import PluginName, PluginSettings, Precision, SequenceMode
from colossal_llama2.model.model_shape import ModelShape, ParameterShape

_ATTENTION, _ATTENTION_OUT = {"q_proj", "k_proj", "v_proj", "qkv_proj"}, {"o_proj"}
_MLP, _MLP_OUT = {"gate_proj", "up_proj", "gate_up_proj"}, {"down_proj"}


@dataclass(frozen=True)
class Layout:
    """How the ranks are divided.

    Attributes:
        plugin: ColossalAI plugin, by the name `train.py` gives it.
        nproc: ranks of the whole job.
        tp, pp, sp: degrees of tensor, pipeline and sequence parallelism (3d).
        sp_mode: split_gather shares the sequence among the tensor-parallel ranks, all_to_all among ranks of its own.
        zero: ZeRO stage inside 3d.
        offload_fraction: share of masters and moments that zero2_cpu keeps in host memory.
    """

    plugin: PluginName = "zero2"
    nproc: int = 1
    tp: int = 1
    pp: int = 1
    sp: int = 1
    sp_mode: SequenceMode = "all_to_all"
    zero: int = 1
    offload_fraction: float = 1.0

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
        checkpoint_layers: so many of them are, where not all.
        defers_head: the stage's loss needs no logits, so that they need not be there where model and plugin allow it.
        use_flash_attn: variable-length FlashAttention; taken in half precision alone.
        freeze_non_embeds_params: train input embedding and head alone.
        lora_rank: rank of the adapters, 0 for none.
        lora_dropout: share of their inputs that is dropped.
        lora_targets: last names of the linears that get one; none for every linear layer but the head.
        lora_train_embeddings: train input embedding and head in full beside the adapters.
    """

    precision: Precision = "bf16"
    micro_batch_size: int = 1
    accumulation_steps: int = 1
    max_length: int = 4096
    use_grad_checkpoint: bool = False
    checkpoint_layers: int = 0
    defers_head: bool = False
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
    def plugin_settings(self) -> PluginSettings:
        """What the engine would be given."""
        layout = self.layout
        return PluginSettings(
            plugin=layout.plugin,
            precision=self.training.precision,
            tp=layout.tp,
            pp=layout.pp,
            sp=layout.sp,
            sp_mode=layout.sp_mode,
            zero=layout.zero,
            offload_fraction=layout.offload_fraction,
        )

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


def layers_of_stages(num_layers: int, stages: int) -> list[range]:
    """Divide layers over pipeline stages as ColossalAI does: evenly, and what is left over goes to the middle ones."""
    counts = [num_layers // stages] * stages
    left = num_layers % stages
    for stage in range(stages // 2 - left // 2, stages // 2 - left // 2 + left):
        counts[stage] += 1
    return [range(sum(counts[:stage]), sum(counts[: stage + 1])) for stage in range(stages)]


def recomputed_layers(wanted: int, num_layers: int, stages: int) -> list[range]:
    """Choose which layers are recomputed, of each pipeline stage the first of its own, as evenly as they divide.

    The first, because the backward pass comes to them last: while one of them is there in full, every layer that kept
    its activations has given them back. Of the last ones, or of ones evenly spread, a whole layer would stand beside
    all that the others kept.

    Args:
        wanted: how many of the whole model.
        num_layers: of the whole model.
        stages: of the pipeline, or chunks where they are interleaved.

    Returns:
        The numbers of the layers, a range a stage.
    """
    chosen = []
    for layers in layers_of_stages(num_layers, stages):
        before, after = (-(-wanted * end // num_layers) for end in (layers.start, layers.stop))
        chosen.append(range(layers.start, layers.start + after - before))
    return chosen


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
