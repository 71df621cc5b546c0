"""Outputs that are whole or absent: work goes to a hidden sibling and takes its final name by a rename."""

from __future__ import annotations

import glob
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from colossal_llama2.errors import InputError


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Complain about an output that is already there; an empty folder counts as absent.

    Raises:
        InputError: the output exists and `overwrite` is off, or its parent cannot be written.
    """
    if target.is_dir() and not any(target.iterdir()):
        return
    if (target.exists() or target.is_symlink()) and not overwrite:
        raise InputError("exists already", path=target, remedy="choose another name or pass --overwrite")
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError("cannot be created here", path=target, remedy=f"make {parent} a writable folder")


def refuse_folder(target: Path) -> None:
    """Complain about a folder, empty or not, where a file is to be written: no rename puts a file in its place.

    Raises:
        InputError: the output is a folder.
    """
    if target.is_dir():
        raise InputError("is a folder, and a file is to be written", path=target, remedy="name a file")


@contextmanager
def whole_directory(target: Path, overwrite: bool = False, flushed: bool = True) -> Iterator[Path]:
    """Give an empty hidden sibling of `target` to fill; it becomes `target` when the block ends without an error.

    What stood under the name before is replaced only then, and is still there after a failure. `flushed` False is for
    what can be made again and says itself whether it is whole: a power cut may leave it damaged.

    Raises:
        InputError: see `refuse_existing`.
    """
    refuse_existing(target, overwrite)
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    if flushed:
        _remove_abandoned(target.parent, glob.escape(target.name))
    else:  # a cache: looking through its many thousand entries for each of them would take longer than making them
        _remove_all_abandoned(target.parent)
    work = _hidden(target, "partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
        if flushed:
            flush_tree(work)
        replace_directory(work, target, flushed)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def whole_file(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give the path of a hidden sibling of `target` to write; it becomes `target` when the block ends well.

    Raises:
        InputError: see `refuse_folder` and `refuse_existing`.
    """
    refuse_folder(target)
    refuse_existing(target, overwrite)
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target.parent, glob.escape(target.name))
    work = _hidden(target, "partial")
    try:
        yield work
        _flush(work)
        work.replace(target)
    finally:
        work.unlink(missing_ok=True)


@contextmanager
def scratch_directory(parent: Path, name: str) -> Iterator[Path]:
    """Give an empty hidden folder in `parent` for the length of a block; those of killed processes are removed."""
    target = parent.absolute() / name
    _remove_abandoned(target.parent, glob.escape(name))
    work = _hidden(target, "partial")
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def flush_tree(folder: Path) -> None:
    """Force everything in a folder to the disk: done before a rename, a power cut leaves it whole or absent."""
    for path in folder.rglob("*"):
        if path.is_file():
            _flush(path)
    _flush(folder)


def replace_directory(work: Path, target: Path, flushed: bool = True) -> None:
    """Rename `work` to `target`, moving what was there out of the way first and deleting it last.

    What was there is put back if `work` cannot be renamed.
    """
    replaced = _hidden(target, "replaced")
    if target.exists() or target.is_symlink():
        target.rename(replaced)
    try:
        work.rename(target)
    except OSError:
        if os.path.lexists(replaced) and not os.path.lexists(target):
            replaced.rename(target)
        raise
    if flushed:
        _flush(target.parent)
    if replaced.is_dir() and not replaced.is_symlink():
        shutil.rmtree(replaced)
    else:
        replaced.unlink(missing_ok=True)


def _hidden(target: Path, what: str) -> Path:
    """Name a hidden sibling that no other process has, on this host or another that shares the folder."""
    return target.with_name(f".{target.name}.{what}-{socket.gethostname()}-{os.getpid()}")


def _remove_abandoned(parent: Path, names: str) -> None:
    """Remove what processes of this host left half-written of these names, a pattern, when they were killed."""
    for path in parent.glob(f".{names}.partial-{glob.escape(socket.gethostname())}-*"):
        owner = path.name.rpartition("-")[2]
        if owner.isdigit() and int(owner) != os.getpid() and not _is_alive(int(owner)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)  # another process may be removing it too
            else:
                path.unlink(missing_ok=True)


@lru_cache(maxsize=64)
def _remove_all_abandoned(parent: Path) -> None:
    """Remove, once a process and folder, what was left half-written under any name."""
    _remove_abandoned(parent, "*")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    """Force a file's bytes to the disk, so that a rename never makes an empty file visible after a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
