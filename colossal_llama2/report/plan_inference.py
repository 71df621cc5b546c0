"""The command `tools/plan_inference.py`: what a model takes of a device while it answers, in each of its formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.model.inference_memory import STORED, Answering, InferenceMemory, predict_inference
from colossal_llama2.model.model_shape import read_model_shape
from colossal_llama2.model.quantized import refuse_quantized
from colossal_llama2.model.quantizing import DEFAULT_GROUP_SIZE
from colossal_llama2.report.evaluate import align_columns

_GIB = 1 << 30


@dataclass(frozen=True)
class PlanInferenceSettings:
    """Predict what a model takes of a GPU while it answers, as stored and quantised; config.json is enough.

    All sizes are GiB of 2**30 bytes. The context is an allowance for what CUDA itself takes.
    """

    model: Path
    """Folder of the unquantised model."""
    tokens: int = 128
    """Tokens of prompt and answer together."""
    rows: int = 1
    """Answers generated at a time."""
    group_size: int = DEFAULT_GROUP_SIZE
    """Columns that share a scale in int4-gptq."""
    quantize_head: bool = False
    """The output head is quantised as well."""


def main(settings: PlanInferenceSettings) -> None:
    """Print a line for each format."""
    for name in ("tokens", "rows"):
        if getattr(settings, name) < 1:
            raise InputError(f"--{name} is {getattr(settings, name)}", remedy="give 1 or more")
    if settings.group_size < 8:
        raise InputError(f"--group_size is {settings.group_size}", remedy="give 8 or more")
    refuse_quantized(settings.model, "is not what the plan starts from")
    cli.say(table(settings))


def table(settings: PlanInferenceSettings) -> str:
    """Lay out the prediction of every format."""
    shape = read_model_shape(settings.model)
    asked = [
        Answering(stored, settings.tokens, settings.rows, settings.group_size, settings.quantize_head)
        for stored in STORED
    ]
    header = ("stored", "weights", "cache", "activations", "unpacked", "allocated", "context", "total")
    return align_columns([header, *((one.stored, *_cells(predict_inference(shape, one))) for one in asked)])


def _cells(memory: InferenceMemory) -> list[str]:
    parts = (memory.weights, memory.cache, memory.activations, memory.unpacked)
    return [f"{size / _GIB:.2f}" for size in (*parts, memory.allocated, memory.context, memory.total)]


if __name__ == "__main__":
    cli.run(PlanInferenceSettings, main)
