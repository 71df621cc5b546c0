"""An adapter added into its base: a model folder like any other, written tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from colossal_llama2.errors import InputError
from colossal_llama2.model.adapter_files import check_base, map_tensors, read_config
from colossal_llama2.model.embedding_names import find_embeddings
from colossal_llama2.model.expanding import Progress, carry_over, rewrite_weights
from colossal_llama2.model.lora import KEY_PREFIX
from colossal_llama2.model.safetensors_stream import TORCH_DTYPES, Buffer, OutgoingTensor, as_bytes
from colossal_llama2.model.weights import WeightFiles, find_weights
from colossal_llama2.tokenizer.folder import copy_tokenizer_files

_BLOCK_NUMBERS = 1 << 24


_Change = tuple[torch.Tensor, ...]
"""What an adapter does to one tensor: one tensor takes its place, of two (A and B) their product is added to it."""


def merge_adapter(
    base_model_dir: Path, adapter_dir: Path, target: Path, progress: Progress = lambda count: None
) -> int:
    """Write a base with an adapter added into it: same files, same dtypes, its tokenizer and configuration.

    The sum is made in fp32 (in fp64 where the base is) and rounded once. In memory are the adapter and a block of one
    matrix, so the size of the base does not matter.

    Args:
        base_model_dir: the model folder that the adapter was trained on.
        adapter_dir: in peft's format.
        target: an empty folder.
        progress: told of every block.

    Returns:
        The number of tensors that the adapter changed.

    Raises:
        InputError: the adapter is not plain LoRA, or does not fit the base.
    """
    config = read_config(adapter_dir)
    check_base(adapter_dir, base_model_dir)
    weights = find_weights(base_model_dir)
    changes = _changes(weights, base_model_dir, adapter_dir)
    rank = int(config["r"])
    scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def merged(tensor: OutgoingTensor, path: Path) -> OutgoingTensor:
        change = changes.get(tensor.name)
        return tensor if change is None else _merged(tensor, weights.map(path, tensor.name), change, scaling)

    rewrite_weights(weights, merged, target, progress)
    copy_tokenizer_files(base_model_dir, target)
    carry_over(base_model_dir, target, link_everything=False)
    return len(changes)


def _changes(weights: WeightFiles, base_model_dir: Path, adapter_dir: Path) -> dict[str, _Change]:
    """Find the base's tensor for every tensor of the adapter; none may be left over, or half of one missing."""
    locations = weights.locations()
    spell = _spelling(base_model_dir, set(locations))
    tensors = map_tensors(adapter_dir)
    changes: dict[str, _Change] = {}
    for key, tensor in tensors.items():
        layer, _, part = key.removeprefix(KEY_PREFIX).removesuffix(".weight").partition(".lora_")
        pair = tuple(tensors[half] for half in _halves(key) if half in tensors) if part else (tensor,)
        stored = spell(f"{layer}.weight" if part else key.removeprefix(KEY_PREFIX))
        if not stored or part not in ("", "A", "B") or (part and len(pair) != 2):
            raise InputError(
                f"{key} has no counterpart" if stored else f"{key} is of no tensor of {base_model_dir}",
                path=adapter_dir,
                remedy="give the base it was trained on, and the adapter as it was saved",
            )
        changes |= dict.fromkeys(stored, pair)
    for name, change in changes.items():
        shape = (len(change[-1]), *change[0].shape[1:])
        if shape != locations[name][1]:
            raise InputError(
                f"{name} is {locations[name][1]} in the base and {shape} in the adapter",
                path=adapter_dir,
                remedy="give the base it was trained on",
            )
    return changes


def _halves(key: str) -> tuple[str, str]:
    """Return the keys of A and B, of which `key` is one."""
    return key.replace(".lora_B.", ".lora_A."), key.replace(".lora_A.", ".lora_B.")


def _spelling(base_model_dir: Path, stored: set[str]) -> Callable[[str], list[str]]:
    """Return what finds a parameter among stored names: under its own, under all a tied one has, without a prefix."""
    names = find_embeddings(base_model_dir, stored)

    def spell(name: str) -> list[str]:
        if name in names.tied:
            return [alias for alias in (names.inputs, names.output) if alias is not None]
        return [spelling for spelling in (name, name.partition(".")[2]) if spelling in stored][:1]

    return spell


def _merged(tensor: OutgoingTensor, base: torch.Tensor, change: _Change, scaling: float) -> OutgoingTensor:
    dtype = TORCH_DTYPES[tensor.dtype]
    exact = torch.promote_types(dtype, torch.float32)
    step = max(1, _BLOCK_NUMBERS // max(1, math.prod(base.shape[1:])))

    def blocks() -> Iterator[Buffer]:
        for begin in range(0, len(base), step):
            rows = slice(begin, begin + step)
            if len(change) == 1:
                yield as_bytes(change[0][rows].to(dtype))
            else:
                a, b = (half.to(exact) for half in (change[0], change[1][rows]))
                yield as_bytes((base[rows].to(exact) + (b @ a) * scaling).to(dtype))

    return OutgoingTensor(tensor.name, tensor.dtype, tensor.shape, tensor.num_bytes, blocks)
