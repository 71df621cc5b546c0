"""Write a model folder again with longer embedding matrices, everything else as it was."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Final

import torch

from colossal_llama2.errors import InputError
from colossal_llama2.model.belonging import CONFIG_FILE, fingerprint_entries, read_config
from colossal_llama2.model.distinct import Distinct
from colossal_llama2.model.new_rows import RowPlan, RowSource, expanded_rows, spread
from colossal_llama2.model.safetensors_stream import DTYPE_NAMES, Buffer, OutgoingTensor, as_bytes, write_tensors
from colossal_llama2.model.weights import INDEX, WEIGHT_SUFFIXES, WeightFiles, read_json
from colossal_llama2.tokenizer.folder import TOKENIZER_FILES

_FLOATS: Final = ("F64", "F32", "F16", "BF16")

Progress = Callable[[int], None]
"""Called with the number of bytes that were just written."""


def expand_weights(
    weights: WeightFiles, sources: Mapping[str, RowSource], plan: RowPlan, target: Path, progress: Progress
) -> int:
    """Write every weight file into `target`, the embedding matrices expanded, all other tensors byte for byte.

    Args:
        weights: the source's files; PyTorch's own are written as safetensors.
        sources: where the new rows of each tensor that has one row a token come from.
        plan: the rows to make.
        target: the folder.
        progress: told of every block.

    Returns:
        How many rows were moved because another new row of the matrix was identical; in a bias they may be.

    Raises:
        InputError: an embedding is not in a floating dtype, or a file cannot be read.
    """
    guards: list[Distinct] = []

    def expanded(tensor: OutgoingTensor, path: Path) -> OutgoingTensor:
        if tensor.name not in sources:
            return tensor
        base = weights.map(path, tensor.name)
        if base.ndim > 1:
            guards.append(Distinct(partial(spread, base[: plan.num_base])))
        return _expanded(tensor, base, plan, sources[tensor.name], guards[-1] if base.ndim > 1 else None)

    rewrite_weights(weights, expanded, target, progress)
    return sum(guard.moved for guard in guards)


def rewrite_weights(
    weights: WeightFiles,
    change: Callable[[OutgoingTensor, Path], OutgoingTensor],
    target: Path,
    progress: Progress,
) -> None:
    """Write every weight file into `target`, each tensor as `change` gives it back, and the index.

    Args:
        weights: the source's files; PyTorch's own are written as safetensors.
        change: gets a tensor and the file it lies in; what it returns unchanged is copied byte for byte.
        target: the folder.
        progress: told of every block.

    Raises:
        InputError: a file cannot be read.
    """
    weight_map: dict[str, str] = {}
    size = parameters = 0
    for path in weights.paths:
        outgoing, metadata = weights.outgoing(path)
        outgoing = [_counted(change(tensor, path), progress) for tensor in outgoing]
        for tensor in outgoing:
            weight_map[tensor.name] = weights.target_name(path)
            size += tensor.num_bytes
            parameters += prod(tensor.shape)
        write_tensors(target / weights.target_name(path), outgoing, metadata)
    if weights.index is not None:
        metadata_of_all = {**read_json(weights.index).get("metadata", {}), "total_size": size}
        if "total_parameters" in metadata_of_all:
            metadata_of_all["total_parameters"] = parameters
        write_json(target / INDEX, {"metadata": metadata_of_all, "weight_map": dict(sorted(weight_map.items()))})


def expand_config(source: Path, tokenizer_dir: Path, num_rows: int, target: Path) -> None:
    """Write the source's ``config.json`` with the new number of rows and the fingerprint of the tokenizer."""
    config = read_config(source)
    for section in (config, config.get("text_config")):
        if isinstance(section, dict) and isinstance(section.get("vocab_size"), int):
            section["vocab_size"] = num_rows
    config.update(fingerprint_entries(tokenizer_dir))
    write_json(target / CONFIG_FILE, config)


def carry_over(source: Path, target: Path, link_everything: bool) -> list[str]:
    """Take the rest of a folder along: what is neither weight nor tokenizer nor written already.

    Args:
        source: the folder.
        target: the folder that takes its place, or a new one.
        link_everything: take sub-folders too, and hard links instead of copies, because `source` will be replaced.

    Returns:
        Names of what stays behind: other weight files, and sub-folders.
    """
    copy = _link_or_copy if link_everything else shutil.copyfile
    behind = []
    for entry in sorted(source.iterdir()):
        if (target / entry.name).exists() or entry.name in TOKENIZER_FILES or entry.name.startswith("."):
            continue
        if entry.is_file() and not _is_of_weights(entry.name):
            copy(str(entry), str(target / entry.name))
        elif entry.is_dir() and link_everything:
            shutil.copytree(entry, target / entry.name, copy_function=_link_or_copy, symlinks=True)
        else:
            behind.append(entry.name)
    return behind


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object as transformers does: two spaces, a final line break."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _expanded(
    tensor: OutgoingTensor, base: torch.Tensor, plan: RowPlan, source: RowSource, distinct: Distinct | None
) -> OutgoingTensor:
    if tensor.dtype not in _FLOATS:
        raise InputError(
            f"{tensor.name} is stored as {tensor.dtype}; a quantised embedding cannot be expanded",
            remedy="start from the model in float16, bfloat16 or float32",
        )
    shape = (plan.num_rows, *base.shape[1:])

    def blocks() -> Iterator[Buffer]:
        for rows in expanded_rows(base, source, plan, distinct):
            yield as_bytes(rows)

    size = prod(shape) * base.element_size()
    return OutgoingTensor(tensor.name, DTYPE_NAMES[base.dtype], shape, size, blocks)


def _counted(tensor: OutgoingTensor, progress: Progress) -> OutgoingTensor:
    def blocks() -> Iterable[Buffer]:
        for block in tensor.blocks():
            yield block
            progress(len(block))

    return dataclasses.replace(tensor, blocks=blocks)


def _is_of_weights(name: str) -> bool:
    return name.endswith((*WEIGHT_SUFFIXES, ".index.json"))


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
    return target
