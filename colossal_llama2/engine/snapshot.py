"""A boosted model's state as files: which rank writes which, and what goes into each.

The files are laid out as ColossalAI's Booster lays them out, so that it can load them under any plugin: weights by
transformers' names in safetensors, moments by the parameter's number. Unlike it, every rank writes a share of the
files, and no rank holds more than one of them at a time (all of its share with a background thread).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from colossal_llama2.engine import ranks
from colossal_llama2.engine.gathering import (
    MOMENTS,
    WholeMoments,
    WholeWeight,
    parameter_groups,
    persistent_buffers,
    whole_moments,
    whole_weights,
)
from colossal_llama2.engine.session import Session
from colossal_llama2.engine.writing import Writing, write_pickled, write_text, write_weights

WEIGHTS_INDEX = "model.safetensors.index.json"
OPTIMIZER_INDEX = "pytorch_optim.bin.index.json"
OPTIMIZER_GROUPS = "pytorch_optim_group.bin"
_BYTES_PER_FILE = 1 << 29  # what a rank holds in host memory while it saves; a larger tensor has a file of its own

Item = TypeVar("Item", WholeWeight, WholeMoments)


def snapshot_weights(
    session: Session, folder: Path, writing: Writing, dtype: torch.dtype | None
) -> tuple[list[Path], torch.dtype]:
    """Hand a model's weights to the writers, in `dtype` or as exact as they are; a collective call.

    Returns:
        The files that will be there, and the dtype that holds every weight.
    """
    files = list(_split(whole_weights(session)))
    names = [f"model-{place:05d}-of-{len(files):05d}.safetensors" for place in range(1, len(files) + 1)]
    index: dict[str, str] = {}
    for place, (name, file) in enumerate(zip(names, files, strict=True)):
        index |= dict.fromkeys((weight.name for weight in file), name)
        # frozen weights are remembered by the first rank alone, as they were before the plugin rounded them
        writer = place % ranks.world_size() if all(weight.changes for weight in file) else 0
        mine: dict[str, torch.Tensor] = {}
        for weight in file:
            whole = weight.gather()
            if ranks.rank() == writer:
                mine[weight.name] = _kept(session.frozen_weights.get(weight.name, whole), dtype, copy=weight.changes)
        if ranks.rank() == writer:
            writing.add(partial(write_weights, folder / name, mine))
    sizes, widest = _stored(session, files, dtype)
    if ranks.is_first():
        content = {"metadata": {"total_size": sizes}, "weight_map": index}
        writing.add(partial(write_text, folder / WEIGHTS_INDEX, json.dumps(content, indent=2) + "\n"))
    return [folder / name for name in (*names, WEIGHTS_INDEX)], widest


def snapshot_optimizer(session: Session, folder: Path, writing: Writing) -> list[Path]:
    """Hand Adam's state to the writers; a collective call.

    Returns:
        The files that will be there.
    """
    files = list(_split(whole_moments(session)))
    names = [f"pytorch_optim-{place:05d}.bin" for place in range(1, len(files) + 1)]
    index: dict[str, str] = {}
    for place, (name, file) in enumerate(zip(names, files, strict=True)):
        index |= dict.fromkeys((str(moments.index) for moments in file), name)
        mine: dict[int, dict[str, torch.Tensor]] = {}
        for moments in file:
            whole = moments.gather()
            if ranks.rank() == place % ranks.world_size():
                kept = {moment: _kept(whole[moment], None) for moment in MOMENTS}
                mine[moments.index] = {"step": moments.step, **kept}
        if ranks.rank() == place % ranks.world_size():
            writing.add(partial(write_pickled, folder / name, mine))
    if ranks.is_first():
        size = sum(4 * len(MOMENTS) * moments.numel for file in files for moments in file)
        content = {"metadata": {"param_groups": OPTIMIZER_GROUPS, "total_size": size}, "weight_map": index}
        writing.add(partial(write_pickled, folder / OPTIMIZER_GROUPS, parameter_groups(session)))
        writing.add(partial(write_text, folder / OPTIMIZER_INDEX, json.dumps(content, indent=2) + "\n"))
    return [folder / name for name in (*names, OPTIMIZER_GROUPS, OPTIMIZER_INDEX)]


def put_weights(session: Session, folder: Path) -> None:
    """Read a snapshot's weights into weights and masters, a tensor at a time; not for Gemini's chunks."""
    from safetensors import safe_open

    module = session.model.unwrap()
    parameters: dict[str, Any] = dict(module.named_parameters())
    buffers = persistent_buffers(module)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  a safetensors file is no dict
                if name in parameters:
                    session.saved_weights.put(parameters[name], file.get_tensor(name))
                elif name in buffers:
                    buffers[name].copy_(file.get_tensor(name))


def _split(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Divide what is to be written into files; every rank divides alike."""
    file: list[Item] = []
    size = 0
    for item in items:
        width = item.dtype.itemsize if isinstance(item, WholeWeight) else 4 * len(MOMENTS)
        if file and size + item.numel * width > _BYTES_PER_FILE:
            yield file
            file, size = [], 0
        file.append(item)
        size += item.numel * width
    if file:
        yield file


def _kept(tensor: torch.Tensor, dtype: torch.dtype | None, copy: bool = True) -> torch.Tensor:
    """Copy to host memory: training goes on over the original, and a slice would be pickled with all it is cut from.

    What is frozen stays as it is, and needs no copy where it lies in host memory already.
    """
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", wanted, copy=copy).contiguous()


def _stored(session: Session, files: list[list[WholeWeight]], dtype: torch.dtype | None) -> tuple[int, torch.dtype]:
    """Return the bytes of all tensors, and the dtype that holds each exactly; only the first rank knows for sure."""
    size, widest = 0, dtype
    for weight in (weight for file in files for weight in file):
        own = session.frozen_weights[weight.name].dtype if weight.name in session.frozen_weights else weight.dtype
        stored = dtype if dtype is not None and own.is_floating_point else own
        size += weight.numel * stored.itemsize
        if dtype is None and own.is_floating_point:
            widest = own if widest is None else torch.promote_types(widest, own)
    return size, widest or torch.float32
