"""From a plugin's name to ColossalAI's plugin, with what it cannot do refused before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch.distributed as dist
from torch import nn

from colossal_llama2 import cli
from colossal_llama2.engine import compat
from colossal_llama2.engine.float8 import check_float8
from colossal_llama2.engine.mesh import Mesh
from colossal_llama2.errors import InputError

PluginName = Literal["gemini", "gemini_auto", "zero2", "zero2_cpu", "3d", "ddp"]
Precision = Literal["fp16", "bf16", "fp32"]
SequenceMode = Literal["all_to_all", "split_gather"]
Float8 = Literal["no", "yes", "emulated"]

INITIAL_LOSS_SCALE = 2.0**16
_MEBI = 1 << 20
_LARGEST_MIN_CHUNK = 32 * _MEBI  # ColossalAI's own default, right for models of billions of parameters
_CHUNKS_AT_LEAST = 8


@dataclass(frozen=True)
class PluginSettings:
    """How the model is spread over the ranks.

    Attributes:
        plugin: ``gemini`` shards weights, gradients and optimizer state (ZeRO-3 in chunks), ``gemini_auto`` moves them
            to host memory as need be, ``zero2`` shards gradients and optimizer state, ``zero2_cpu`` keeps them in host
            memory as well, ``3d`` divides layers and tensors too, ``ddp`` replicates everything.
        precision: what forward and backward compute in; master weights are fp32 in every case.
        gradient_clipping: largest global gradient norm; 0 switches clipping off.
        tp, pp, sp: degrees of tensor, pipeline and sequence parallelism (``3d``).
        sp_mode: ``all_to_all`` divides sequences over ranks of its own, ``split_gather`` over the tensor-parallel ones.
        pp_chunks: chunks of layers a pipeline stage holds; more than one interleaves them.
        zero: ZeRO stage inside ``3d``.
        offload_fraction: share of masters and moments that ``zero2_cpu`` keeps in host memory.
        float8: matmuls of decoder layers in float8 on the card, ``emulated`` with float8's rounding on any machine.
    """

    plugin: PluginName = "zero2"
    precision: Precision = "fp16"
    gradient_clipping: float = 1.0
    tp: int = 1
    pp: int = 1
    sp: int = 1
    sp_mode: SequenceMode = "all_to_all"
    pp_chunks: int = 1
    zero: int = 1
    offload_fraction: float = 1.0
    float8: Float8 = "no"

    @property
    def sequence_ranks(self) -> int:
        """Ranks that divide a sequence and are not tensor-parallel ranks at the same time."""
        return self.sp if self.sp_mode == "all_to_all" else 1

    def mesh(self, rank: int, world_size: int) -> Mesh:
        """Place a rank among the dimensions asked for.

        Raises:
            InputError: their degrees do not divide the number of ranks.
        """
        degree = self.pp * self.tp * self.sequence_ranks
        if world_size % degree:
            raise InputError(
                f"{world_size} ranks cannot be divided by pp {self.pp} x tp {self.tp} x sp {self.sequence_ranks}",
                remedy=f"start a multiple of {degree} ranks, or lower a degree",
            )
        return Mesh.of(rank, world_size, self.pp, self.tp, self.sequence_ranks)


def check_plugin(settings: PluginSettings) -> None:
    """Refuse combinations that the plugin cannot run.

    Raises:
        InputError: with the reason and the nearest thing that works.
    """
    if settings.plugin in ("gemini", "gemini_auto") and settings.precision == "fp32":
        raise InputError(
            f"--plugin {settings.plugin} computes in fp16 or bf16 alone, and --mixed_precision is fp32",
            remedy="pass --mixed_precision bf16, or --plugin zero2",
        )
    if settings.plugin == "3d":
        _check_3d(settings)
    else:
        for flag in ("tp", "pp", "sp", "pp_chunks", "sp_mode", "zero"):
            given, default = getattr(settings, flag), getattr(PluginSettings, flag)
            if given != default:
                raise InputError(
                    f"--{flag} {given} with --plugin {settings.plugin}, which holds every layer whole"
                    if default == 1 and flag != "zero"
                    else f"--{flag} {given} with --plugin {settings.plugin}, which leaves no choice of it",
                    remedy=f"leave --{flag} at {default}, or pass --plugin 3d",
                )
    if settings.gradient_clipping < 0:
        raise InputError("--gradient_clipping is negative", remedy="give a norm, or 0 for no clipping")
    if settings.plugin != "zero2_cpu" and settings.offload_fraction != 1:
        raise InputError(
            f"--offload_fraction with --plugin {settings.plugin}", remedy="pass --plugin zero2_cpu, or leave it out"
        )
    if not 0 < settings.offload_fraction <= 1:
        raise InputError(
            f"--offload_fraction is {settings.offload_fraction}",
            remedy="give more than 0 and at most 1; zero2 keeps all on the device",
        )
    check_float8(settings)


def _check_3d(settings: PluginSettings) -> None:
    for flag in ("tp", "pp", "sp", "pp_chunks"):
        if getattr(settings, flag) < 1:
            raise InputError(f"--{flag} is {getattr(settings, flag)}", remedy="give 1 or more")
    if settings.zero not in (0, 1, 2):
        raise InputError(f"--zero {settings.zero} inside 3d", remedy="give 0, 1 or 2; --plugin gemini is ZeRO-3")
    if settings.zero and settings.precision == "fp32":
        raise InputError(
            f"--zero {settings.zero} inside 3d works in fp16 or bf16 alone, and --mixed_precision is fp32",
            remedy="pass --zero 0, --mixed_precision bf16, or --plugin zero2, which does ZeRO in fp32",
        )
    if settings.zero == 2 and settings.pp > 1:
        raise InputError(
            "--zero 2 would reduce the gradients at every micro-batch of the pipeline", remedy="pass --zero 1 or 0"
        )
    if settings.pp == 1 and settings.pp_chunks > 1:
        raise InputError(f"--pp_chunks {settings.pp_chunks} without a pipeline", remedy="pass --pp 2 or more")
    if settings.sp_mode == "split_gather" and settings.sp not in (1, settings.tp):
        raise InputError(
            f"--sp_mode split_gather divides the sequence over the tensor-parallel ranks, and --sp {settings.sp} "
            f"is not --tp {settings.tp}",
            remedy=f"pass --sp {settings.tp}, or --sp_mode all_to_all",
        )


def build_plugin(settings: PluginSettings, model: nn.Module, accumulates: bool) -> Any:
    """Build ColossalAI's Booster plugin for a model; the process group is up.

    Args:
        settings: what was asked for.
        model: what it will train; Gemini's chunks are cut to its size.
        accumulates: a step has more than one micro-batch.
    """
    check_plugin(settings)
    compat.install()
    from colossalai.booster.plugin import GeminiPlugin, LowLevelZeroPlugin, TorchDDPPlugin

    if settings.plugin == "ddp":
        return TorchDDPPlugin()
    if settings.plugin == "3d":
        return _hybrid_plugin(settings, model)
    if settings.plugin in ("gemini", "gemini_auto"):
        return GeminiPlugin(
            placement_policy="auto" if settings.plugin == "gemini_auto" else "static",
            precision=settings.precision,
            enable_gradient_accumulation=accumulates,
            initial_scale=INITIAL_LOSS_SCALE,
            # the norm is measured only when clipping is on
            max_norm=settings.gradient_clipping or float("inf"),
            pin_memory=True,  # where it is not (a CPU), compat has seen to it
            **chunk_sizes(model),
        )
    return LowLevelZeroPlugin(
        stage=2,
        precision=settings.precision,
        initial_scale=INITIAL_LOSS_SCALE,
        max_norm=settings.gradient_clipping,
        cpu_offload=settings.plugin == "zero2_cpu",
        # each backward pass then ends by waiting for the device; with one rank there is nothing to overlap
        overlap_communication=dist.get_world_size() > 1,
    )


def _hybrid_plugin(settings: PluginSettings, model: nn.Module) -> Any:
    from colossalai.booster.plugin import HybridParallelPlugin

    from colossal_llama2.engine.pipeline import whole_micro_batches
    from colossal_llama2.engine.plan_policy import PlanPolicy

    divided = settings.sp > 1
    plugin = HybridParallelPlugin(
        tp_size=settings.tp,
        pp_size=settings.pp,
        sp_size=settings.sequence_ranks if divided and settings.sp_mode == "all_to_all" else 1 if divided else None,
        zero_stage=_zero_stage(settings, model),
        precision=settings.precision,
        enable_sequence_parallelism=divided,
        sequence_parallelism_mode=settings.sp_mode if divided else None,
        pp_style="interleaved" if settings.pp_chunks > 1 else "1f1b",
        num_model_chunks=settings.pp_chunks,
        num_microbatches=1,  # for its own schedule, which is replaced below
        parallel_output=True,
        make_vocab_size_divisible_by=1,
        initial_scale=INITIAL_LOSS_SCALE,
        # the norm is measured only when clipping is on
        max_norm=settings.gradient_clipping or float("inf"),
        custom_policy=PlanPolicy(),
    )
    if settings.pp > 1:
        plugin.scheduler = whole_micro_batches(plugin.scheduler, plugin.stage_manager)
    return plugin


def _zero_stage(settings: PluginSettings, model: nn.Module) -> int:
    """Choose the ZeRO stage asked for, or none where it cannot be had; what is done otherwise is said."""
    if not settings.zero:
        return 0
    if dist.get_world_size() == settings.tp * settings.pp:  # sequence ranks share it with data ranks
        cli.say(f"3d: --zero {settings.zero} has nobody to share with, there is one data rank")
        return 0
    layers: Any = model.get_decoder().layers if settings.pp > 1 else ()  # type: ignore[operator]
    if not all(any(p.requires_grad and p.ndim > 1 for p in layer.parameters()) for layer in layers):
        # low_level_optim.py:105 takes the dtype of the first parameter of the first group, and there is none
        cli.say(f"3d: --zero 0 instead of {settings.zero}, because there are pipeline stages that train nothing")
        return 0
    return settings.zero


def chunk_sizes(model: nn.Module) -> dict[str, Any]:
    """Choose Gemini's chunks so that every model is sharded.

    A model smaller than the smallest chunk stays whole on every rank, and then ColossalAI counts the first micro-batch
    of an accumulation once a rank (zero/gemini/chunk/manager.py:290). With at least eight chunks that cannot happen.
    """
    numel = sum(parameter.numel() for parameter in model.parameters())
    smallest = min(_LARGEST_MIN_CHUNK, max(numel // _CHUNKS_AT_LEAST, 1))
    return {
        "min_chunk_size_m": smallest / _MEBI,
        "search_range_m": smallest / _MEBI,
        "hidden_dim": int(getattr(model.config, "hidden_size", 1024)),
    }
