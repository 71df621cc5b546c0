"""A model folder written again with its linear layers in 8 or 4 bits, everything else as it was.

int8       each number rounded to the nearest, a scale a row; one weight file at a time is in memory
int4-gptq  rounded by GPTQ on a calibration text, a scale for each group of columns
nf4        bitsandbytes' 4-bit NormalFloat (Dettmers et al., arXiv 2305.14314) with its scales quantised again

Input embedding, norms and (unless asked for) the output head keep their dtype: rows of tokens that a text seldom has
would be rounded by what is seldom seen, and a large vocabulary's head decides every token.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from colossal_llama2.errors import InputError
from colossal_llama2.model.embedding_names import build_without_memory
from colossal_llama2.model.gptq import Grid, Rounded, round_to_nearest
from colossal_llama2.model.model_shape import read_model_shape
from colossal_llama2.model.quantized import BITSANDBYTES, COMPRESSED_TENSORS, refuse_quantized, require_library
from colossal_llama2.model.quantizing_layers import quantize_layers
from colossal_llama2.model.quantizing_writing import config_of_groups, merged_config, write_folder, write_weights
from colossal_llama2.model.weights import find_weights

Method = Literal["int8", "int4-gptq", "nf4"]
LIBRARIES: Final[Mapping[Method, str]] = {
    "int8": COMPRESSED_TENSORS,
    "int4-gptq": COMPRESSED_TENSORS,
    "nf4": BITSANDBYTES,
}
DEFAULT_GROUP_SIZE: Final = 128
# vLLM's kernels take these; transformers any.
VLLM_GROUP_SIZES: Final = (32, 64, 128)


@dataclass(frozen=True)
class Plan:
    """What is to be done to a model.

    Attributes:
        method: how numbers are rounded.
        group_size: columns that share a scale (int4-gptq).
        with_head: round the output head as well.
        device: where to compute.
    """

    method: Method
    group_size: int = DEFAULT_GROUP_SIZE
    with_head: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Outcome:
    """What was done.

    Attributes:
        matrices: how many were rounded.
        numbers: how many numbers they hold.
        group_sizes: group size in columns to the number of matrices that have it; for int8 these are whole rows.
    """

    matrices: int
    numbers: int
    group_sizes: dict[int, int]


def check_model(model_dir: Path, plan: Plan) -> None:
    """Refuse a model that a method cannot take, before anything is loaded.

    Raises:
        InputError: naming why, or the library that is missing.
    """
    refuse_quantized(model_dir, "cannot be quantised again")
    require_library(LIBRARIES[plan.method], f"--method {plan.method}")
    if plan.method == "int4-gptq" and plan.group_size < 8:
        raise InputError(f"--group_size is {plan.group_size}", remedy="give 8 or more; 128 is usual")
    shape = read_model_shape(model_dir)
    if plan.with_head and shape.tied:
        raise InputError(
            "the output head is the input embedding, which keeps its precision",
            path=model_dir,
            remedy="leave --quantize_head away",
        )
    if plan.method == "int4-gptq" and not shape.has_llama_layers:
        raise InputError(
            f"the layers of {shape.model_type} are not built like Llama's, and GPTQ would leave parts of them out",
            path=model_dir,
            remedy="use --method nf4 or int8",
        )


def quantize(
    model_dir: Path, plan: Plan, rows: torch.Tensor | None, target: Path, done: Callable[[str], None]
) -> Outcome:
    """Write a model folder in few bits; `check_model` has let it pass.

    Args:
        model_dir: the model.
        plan: what to do.
        rows: calibration token ids, int64 [N, S], for int4-gptq.
        target: an empty folder.
        done: told of each step.
    """
    if plan.method == "nf4":
        return _normal_float(model_dir, plan, target)
    linears = linear_layers(model_dir, plan.with_head)
    if plan.method == "int8":
        return _write_rounded(model_dir, linears, _rows_to_nearest(model_dir, linears), 8, target)
    assert rows is not None, "int4-gptq has a calibration text"
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype="auto", local_files_only=True, trust_remote_code=False
    )
    rounded = dict(
        quantize_layers(
            model.eval(),
            rows,
            lambda columns: Grid(4, group_size_for(columns, plan.group_size)),
            plan.device,
            done,
            plan.with_head,
        )
    )
    del model
    assert rounded.keys() == set(linears), "the walk rounds what the configuration will name"
    return _write_rounded(model_dir, linears, rounded.__getitem__, 4, target)


def group_size_for(columns: int, wanted: int) -> int:
    """Return the wanted group size where it divides a matrix's columns, else the largest multiple of 8 that does.

    Below 8 a scale would take as much as the numbers, so a matrix without such a divisor has one scale a row.
    """
    if columns % wanted == 0:
        return wanted
    divisors = [size for size in range(8, min(wanted, columns) + 1, 8) if columns % size == 0]
    return max(divisors, default=columns)


def linear_layers(model_dir: Path, with_head: bool) -> dict[str, tuple[int, ...]]:
    """Map the weights that are rounded, as the checkpoint spells them, to their shapes.

    Raises:
        InputError: one is stored under another name than transformers gives it.
    """
    model = build_without_memory(model_dir)
    head = model.get_output_embeddings()
    stored = find_weights(model_dir).locations()
    linears = {
        f"{name}.weight": tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (with_head or module is not head)
    }
    missing = sorted(linears.keys() - stored.keys())
    if missing or not linears:
        raise InputError(
            f"{missing[0] if missing else 'a linear layer'} is not among the weights",
            path=model_dir,
            remedy="save the model again with transformers, or use --method nf4",
        )
    return linears


def _rows_to_nearest(model_dir: Path, linears: Mapping[str, tuple[int, ...]]) -> Callable[[str], Rounded]:
    weights = find_weights(model_dir)
    locations = weights.locations()

    def rounded(name: str) -> Rounded:
        return round_to_nearest(weights.map(locations[name][0], name), Grid(8, linears[name][1]))

    return rounded


def _write_rounded(
    model_dir: Path,
    linears: Mapping[str, tuple[int, ...]],
    rounded: Callable[[str], Rounded],
    bits: int,
    target: Path,
) -> Outcome:
    """Write the folder; `rounded` gives each matrix when its turn comes."""
    head_name = _head_name(model_dir)
    ignored = [] if f"{head_name}.weight" in linears else [head_name]
    sizes = write_weights(model_dir, linears, rounded, bits, target)
    write_folder(model_dir, target, config_of_groups(sizes, bits, ignored))
    return Outcome(len(linears), sum(a * b for a, b in linears.values()), dict(Counter(sizes.values())))


def _normal_float(model_dir: Path, plan: Plan, target: Path) -> Outcome:
    """Let bitsandbytes round while transformers loads, and keep of what it saves the weights and their description."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    dtype = getattr(torch, read_model_shape(model_dir).stored_dtype)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[] if plan.with_head else [_head_name(model_dir)],
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype="auto",
        quantization_config=config,
        device_map={"": plan.device},
        local_files_only=True,
        trust_remote_code=False,
    )
    sizes = [parameter.quant_state.shape.numel() for parameter in _in_four_bits(model)]
    with tempfile.TemporaryDirectory(prefix=".saved-", dir=target) as folder:
        model.save_pretrained(folder)
        for path in Path(folder).glob("model*"):
            path.rename(target / path.name)
        description = merged_config(model_dir, Path(folder))
    write_folder(model_dir, target, description)
    return Outcome(len(sizes), sum(sizes), {64: len(sizes)})


def _in_four_bits(model: nn.Module) -> Iterator[Any]:
    yield from (parameter for parameter in model.parameters() if hasattr(parameter, "quant_state"))


def _head_name(model_dir: Path) -> str:
    model = build_without_memory(model_dir)
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is head)
