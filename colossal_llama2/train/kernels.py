"""What the layers of a model are computed by, as the flags ask and the machine allows."""

from __future__ import annotations

from typing import Any

from colossal_llama2 import cli
from colossal_llama2.model.compiled_layers import compile_layers
from colossal_llama2.model.fused_kernels import fuse
from colossal_llama2.train.settings import StageSettings


def choose_kernels(settings: StageSettings, model: Any) -> None:
    """Put fused kernels into a model and mark its layers to be compiled, and say so; before a plugin has it."""
    options = settings.model
    fused = fuse(model, options.fused_kernels, gathers_weights=settings.parallel.plugin.startswith("gemini"))
    if fused:
        cli.say(fused)
    if options.compile:
        cli.say(f"compile: {compile_layers(model)} decoder layers, when the first step comes to them")
