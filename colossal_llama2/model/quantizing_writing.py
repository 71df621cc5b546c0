"""The files of a quantised model folder: weights in compressed-tensors' packing, and config.json that says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from colossal_llama2.model.belonging import CONFIG_FILE, read_config
from colossal_llama2.model.expanding import carry_over, write_json
from colossal_llama2.model.gptq import Rounded
from colossal_llama2.model.safetensors_stream import DTYPE_NAMES, OutgoingTensor, from_torch, write_tensors
from colossal_llama2.model.weights import INDEX, WeightFiles, find_weights, read_json
from colossal_llama2.tokenizer.folder import copy_tokenizer_files

_CONFIG_KEY: Final = "quantization_config"


def write_weights(
    model_dir: Path,
    linears: Mapping[str, tuple[int, ...]],
    rounded: Callable[[str], Rounded],
    bits: int,
    target: Path,
) -> dict[str, int]:
    """Write the weight files with some matrices packed, and the index where there are several files.

    Args:
        model_dir: the source; its files keep their names, PyTorch's own become safetensors.
        linears: names and shapes of the matrices that are packed.
        rounded: gives one of them.
        bits: of their numbers.
        target: the folder.

    Returns:
        The group size of each matrix.
    """
    weights = find_weights(model_dir)
    sizes: dict[str, int] = {}
    weight_map: dict[str, str] = {}
    total = 0
    for path in weights.paths:
        kept, metadata = weights.outgoing(path)
        outgoing: list[OutgoingTensor] = [tensor for tensor in kept if tensor.name not in linears]
        for tensor in kept:
            if tensor.name in linears:
                outgoing += _packed(tensor.name, rounded(tensor.name), bits, sizes)
        name = _write_file(weights, path, outgoing, metadata, target)
        weight_map.update({tensor.name: name for tensor in outgoing})
        total += sum(tensor.num_bytes for tensor in outgoing)
    if weights.index is not None:
        old = read_json(weights.index).get("metadata", {})
        metadata_of_all = {key: value for key, value in old.items() if key != "total_parameters"}
        write_json(
            target / INDEX,
            {"metadata": {**metadata_of_all, "total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
        )
    assert sizes.keys() == linears.keys(), "every matrix was packed"
    return sizes


def config_of_groups(sizes: Mapping[str, int], bits: int, ignored: Sequence[str]) -> dict[str, Any]:
    """Describe packed matrices as compressed-tensors reads it: one group of layers for each group size.

    Args:
        sizes: name of each matrix to its group size; 8 bits have one scale a row, whatever the size says.
        bits: of a number.
        ignored: names of linear layers that keep their dtype.
    """
    by_size: dict[int | None, list[str]] = {}
    for name, columns in sizes.items():
        by_size.setdefault(None if bits == 8 else columns, []).append(name.removesuffix(".weight"))
    groups = {}
    for index, (size, names) in enumerate(sorted(by_size.items(), key=lambda item: item[0] or 0)):
        targets = ["Linear"] if len(by_size) == 1 else sorted({_pattern(name) for name in names})
        strategy = {"strategy": "channel"} if size is None else {"strategy": "group", "group_size": size}
        groups[f"group_{index}"] = {
            "targets": targets,
            "weights": {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, **strategy},
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(ignored),
    }


def merged_config(model_dir: Path, saved_dir: Path) -> dict[str, Any]:
    """Return the description of its weights that a library saved; what is private to its classes is left out."""
    saved: dict[str, Any] = read_config(saved_dir)[_CONFIG_KEY]
    return {key: value for key, value in saved.items() if not key.startswith("_")}


def write_folder(model_dir: Path, target: Path, description: Mapping[str, Any]) -> None:
    """Write config.json with the description of the weights, and take tokenizer and all else along."""
    write_json(target / CONFIG_FILE, {**read_config(model_dir), _CONFIG_KEY: dict(description)})
    copy_tokenizer_files(model_dir, target)


def take_rest_along(model_dir: Path, target: Path) -> None:
    """Copy what neither weights, tokenizer nor this command wrote: generation_config.json among it."""
    carry_over(model_dir, target, link_everything=False)


def _packed(name: str, rounded: Rounded, bits: int, sizes: dict[str, int]) -> list[OutgoingTensor]:
    """Return what compressed-tensors stores for a matrix; it is packed when it is written."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    stem = name.removesuffix("weight")
    rows, columns = rounded.numbers.shape
    sizes[name] = rounded.grid.group_size
    packed = pack_to_int32(rounded.numbers, bits)
    assert packed.shape == (rows, -(-columns * bits // 32))
    return [
        from_torch(f"{stem}weight_packed", packed),
        from_torch(f"{stem}weight_scale", rounded.scales),
        from_torch(f"{stem}weight_shape", torch.tensor([rows, columns])),
    ]


def _write_file(
    weights: WeightFiles, path: Path, tensors: list[OutgoingTensor], metadata: dict[str, str], target: Path
) -> str:
    """Write one file, widest numbers first, so that every tensor begins where its dtype may."""
    widths = {DTYPE_NAMES[dtype]: dtype.itemsize for dtype in DTYPE_NAMES}
    tensors.sort(key=lambda tensor: (-widths.get(tensor.dtype, 1), tensor.name))
    name = weights.target_name(path)
    write_tensors(target / name, tensors, metadata)
    return name


def _pattern(name: str) -> str:
    """Let one pattern stand for the same matrix of every layer."""
    return "re:^" + re.sub(r"\\\.\d+\\\.", r"\\.[0-9]+\\.", re.escape(name)) + "$"
