"""Weights and moments written by ColossalAI itself: for plugins that split tensors or layers over the ranks.

It takes a copy of the trained weights in fp32 on the device while it saves, and writes while training waits.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from colossal_llama2.engine import ranks
from colossal_llama2.engine.session import Session
from colossal_llama2.engine.snapshot import WEIGHTS_INDEX
from colossal_llama2.engine.writing import Writing, write_weights

_SHARD_MEGABYTES = 1024


def booster_weights(
    session: Session, folder: Path, writing: Writing, dtype: torch.dtype | None
) -> tuple[list[Path], torch.dtype]:
    """Save a model's weights in `dtype` or as exact as they are, with ``booster.save_model``; a collective call.

    Returns:
        The files that are there, and the dtype that holds every weight; for the first rank alone.
    """
    writing.attempt(lambda: folder.mkdir(parents=True, exist_ok=True))
    ranks.barrier()
    with session.saved_weights.in_place():
        session.booster.save_model(
            session.model, str(folder), shard=True, size_per_shard=_SHARD_MEGABYTES, use_safetensors=True
        )
    ranks.barrier()
    paths = sorted(folder.glob("*.safetensors"))
    widest = dtype or torch.float32
    if ranks.is_first():  # nobody else looks into files that are being rewritten
        writing.attempt(lambda: _finish(session, folder, paths, dtype))
        widest = dtype or _widest_dtype(paths)
    return [*paths, folder / WEIGHTS_INDEX], widest


def booster_optimizer(session: Session, folder: Path) -> list[Path]:
    """Save the optimizer's state with ``booster.save_optimizer``; a collective call.

    Returns:
        The files that are there.
    """
    session.complete_optimizer_state()
    session.booster.save_optimizer(session.optimizer, str(folder), shard=True)
    ranks.barrier()
    return sorted(folder.iterdir())


def _finish(session: Session, folder: Path, paths: list[Path], dtype: torch.dtype | None) -> None:
    """Cast the weights if asked, put frozen ones back as they came, and state the size that is there."""
    for path in paths:
        if dtype is not None or session.frozen_weights:
            tensors = {name: session.frozen_weights.get(name, tensor) for name, tensor in load_file(path).items()}
            tensors = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}
            rewritten = path.with_suffix(".rewritten")  # the tensors are a view of the file itself
            write_weights(rewritten, tensors)
            rewritten.replace(path)
        # safetensors writes files that only their owner may read; the index beside them has the usual mode
        path.chmod((folder / WEIGHTS_INDEX).stat().st_mode & 0o777)
    index = folder / WEIGHTS_INDEX
    content = json.loads(index.read_text(encoding="utf-8"))
    content.setdefault("metadata", {})["total_size"] = sum(path.stat().st_size for path in paths)
    index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _widest_dtype(paths: list[Path]) -> torch.dtype:
    """Return the dtype that holds every tensor of the files exactly: frozen weights may be narrower than masters."""
    widest: torch.dtype | None = None
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  a safetensors file is no dict
                dtype = file.get_slice(name)[:0].dtype
                widest = dtype if widest is None else torch.promote_types(widest, dtype)
    return widest or torch.float32
