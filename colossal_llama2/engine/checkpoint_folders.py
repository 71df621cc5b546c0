"""The checkpoints of a folder: their names, which are whole, which are the newest, and how one goes.

A checkpoint that goes loses its name first, by a rename: a kill in the middle never leaves half of one
that looks whole.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from colossal_llama2.engine.running_state import FILE_NAME
from colossal_llama2.errors import InputError

_NAME = re.compile(r"epoch-(\d+)_step-(\d+)")
_ASIDE = re.compile(r"^superseded-\d+_")
_OURS = ("epoch-*_step-*", "modeling", "adapter")
_LEFTOVERS = tuple(f".{name}.{what}" for name in _OURS for what in ("partial*", "removed"))
_REPLACED = tuple(f".{name}.replaced-*" for name in _OURS)


def checkpoint_name(epoch: int, step: int) -> str:
    """Folder name of a checkpoint."""
    return f"epoch-{epoch}_step-{step}"


def whole_checkpoints(save_dir: Path) -> list[Path]:
    """Return the whole checkpoints of a folder, oldest first; half-written ones have other names and are not seen."""
    found = [path for path in save_dir.glob("epoch-*_step-*") if _NAME.fullmatch(path.name)]
    return sorted((path for path in found if (path / FILE_NAME).is_file()), key=_place)


def latest_checkpoint(save_dir: Path) -> Path:
    """Return the newest whole checkpoint.

    Raises:
        InputError: there is none.
    """
    whole = whole_checkpoints(save_dir)
    if not whole:
        raise InputError("no whole checkpoint here", path=save_dir, remedy="leave --load_checkpoint out to start anew")
    return whole[-1]


def newer_checkpoints(checkpoint: Path) -> list[Path]:
    """Return the whole checkpoints beside one that are as far or further, oldest first; also beside one set aside."""
    if not _NAME.fullmatch(_ASIDE.sub("", checkpoint.name)):
        return []
    here = _place(checkpoint)
    return [path for path in whole_checkpoints(checkpoint.parent) if path != checkpoint and _place(path) >= here]


def set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint so that it is nobody's newest one, and return its new name; all of it is kept."""
    count = 1
    while (aside := checkpoint.with_name(f"superseded-{count}_{checkpoint.name}")).exists():
        count += 1
    return checkpoint.rename(aside)


def remove_checkpoint(checkpoint: Path) -> None:
    """Delete a checkpoint."""
    nameless = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(nameless, ignore_errors=True)
    shutil.rmtree(checkpoint.rename(nameless))


def remove_older(save_dir: Path, keep: int) -> None:
    """Delete all whole checkpoints of a folder but the `keep` newest; 0 deletes none."""
    for checkpoint in whole_checkpoints(save_dir)[:-keep] if keep else []:
        remove_checkpoint(checkpoint)


def _place(checkpoint: Path) -> tuple[int, int]:
    """Return a checkpoint's step and epoch, as its name has them."""
    match = _NAME.search(checkpoint.name)
    assert match is not None
    return int(match[2]), int(match[1])


def clear_leftovers(save_dir: Path) -> None:
    """Delete what a killed save or removal left under a hidden name; what lost its name to nothing gets it back."""
    for path in (path for pattern in _REPLACED for path in save_dir.glob(pattern)):
        named = path.with_name(path.name[1:].partition(".replaced-")[0])
        if named.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(named)
    for path in (path for pattern in _LEFTOVERS for path in save_dir.glob(pattern)):
        shutil.rmtree(path, ignore_errors=True)
