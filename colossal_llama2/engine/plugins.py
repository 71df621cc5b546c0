"""From a plugin's name to ColossalAI's plugin, with what it cannot do refused before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from colossal_llama2.engine import compat
from colossal_llama2.errors import InputError

PluginName = Literal["zero2", "zero2_cpu", "ddp"]
Precision = Literal["fp16", "bf16", "fp32"]

INITIAL_LOSS_SCALE = 2.0**16


@dataclass(frozen=True)
class PluginSettings:
    """How the model is spread over the ranks.

    Attributes:
        plugin: ``zero2`` shards gradients and optimizer state, ``zero2_cpu`` keeps them in host memory as well, ``ddp``
            replicates everything.
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
    for flag in ("tp", "pp", "sp"):
        if getattr(settings, flag) != 1:
            raise InputError(
                f"--{flag} {getattr(settings, flag)} with --plugin {settings.plugin}, which holds every layer whole",
                remedy=f"leave --{flag} at 1",
            )
    if settings.gradient_clipping < 0:
        raise InputError("--gradient_clipping is negative", remedy="give a norm, or 0 for no clipping")


def build_plugin(settings: PluginSettings) -> Any:
    """Build ColossalAI's Booster plugin; `compat.install` has been run and the process group is up."""
    check_plugin(settings)
    compat.install()
    from colossalai.booster.plugin import LowLevelZeroPlugin, TorchDDPPlugin

    if settings.plugin == "ddp":
        return TorchDDPPlugin()
    return LowLevelZeroPlugin(
        stage=2,
        precision=settings.precision,
        initial_scale=INITIAL_LOSS_SCALE,
        max_norm=settings.gradient_clipping,
        cpu_offload=settings.plugin == "zero2_cpu",
    )
