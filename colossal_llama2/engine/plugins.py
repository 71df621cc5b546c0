"""From a plugin's name to ColossalAI's plugin, with what it cannot do refused before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from colossal_llama2.engine import compat
from colossal_llama2.errors import InputError

PluginName = Literal["gemini", "gemini_auto", "zero2", "zero2_cpu", "ddp"]
Precision = Literal["fp16", "bf16", "fp32"]

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
            memory as well, ``ddp`` replicates everything.
        precision: what forward and backward compute in; master weights are fp32 in every case.
        gradient_clipping: largest global gradient norm; 0 switches clipping off.
        tp, pp, sp: degrees of tensor, pipeline and sequence parallelism.
        zero: ZeRO stage asked for.
    """

    plugin: PluginName = "zero2"
    precision: Precision = "fp16"
    gradient_clipping: float = 1.0
    tp: int = 1
    pp: int = 1
    sp: int = 1
    zero: int = 1


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
    for flag in ("tp", "pp", "sp"):
        if getattr(settings, flag) != 1:
            raise InputError(
                f"--{flag} {getattr(settings, flag)} with --plugin {settings.plugin}, which holds every layer whole",
                remedy=f"leave --{flag} at 1",
            )
    if settings.gradient_clipping < 0:
        raise InputError("--gradient_clipping is negative", remedy="give a norm, or 0 for no clipping")


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
    )


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
