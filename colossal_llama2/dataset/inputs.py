"""From folders to shards: which files hold the corpus, and byte ranges of them that workers read on their own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from colossal_llama2.errors import InputError

SHARD_BYTES = 16 << 20


@dataclass(frozen=True)
class InputFile:
    """A file of the corpus; `name` tells it in the ledger without saying where it lies."""

    path: Path
    name: str
    num_bytes: int


@dataclass(frozen=True)
class Shard:
    """The lines of a file that begin in the bytes [start, end)."""

    file: InputFile
    start: int
    end: int


def find_inputs(entries: Sequence[str]) -> tuple[list[InputFile], list[str]]:
    """List the jsonl files of folders (searched in depth, links followed) and single files.

    The order depends on names alone.

    Returns:
        The files, and the names of what was passed over because it is not jsonl.

    Raises:
        InputError: an entry is missing, unreadable or holds no jsonl, or a file is named twice.
    """
    files: list[InputFile] = []
    ignored: list[str] = []
    for entry, title in zip(entries, _titles(entries), strict=True):
        root = Path(entry)
        if not root.exists():
            raise InputError("does not exist", path=entry, remedy="name folders or jsonl files in --data_input_dirs")
        before = len(files)
        for path in [root] if root.is_file() else _walk(root):
            name = title if path == root else f"{title}/{path.relative_to(root).as_posix()}"
            if path.suffix == ".jsonl" and not path.name.startswith("."):
                files.append(InputFile(path, name, _size(path)))
            else:
                ignored.append(name)
        if len(files) == before:
            raise InputError(
                "holds no .jsonl file", path=entry, remedy="name folders or jsonl files in --data_input_dirs"
            )
    seen: set[Path] = set()
    for file in files:
        real = file.path.resolve()
        if real in seen:
            raise InputError("is named twice by --data_input_dirs", path=file.path, remedy="name it once")
        seen.add(real)
    return files, ignored


def _titles(entries: Sequence[str]) -> list[str]:
    """Name entries for the ledger by their last part; a second one of that name gets a number."""
    names = [Path(os.path.abspath(entry)).name for entry in entries]  # noqa: PTH100 (resolve() would follow links)
    return [
        name if names.index(name) == number else f"{name}#{names[:number].count(name) + 1}"
        for number, name in enumerate(names)
    ]


def _walk(root: Path) -> list[Path]:
    """List what is not a folder below `root`, by name; a folder that links lead to twice is listed once.

    `Path.rglob` would pass over links to folders and over folders that cannot be opened without a word.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()  # a link back to where we were
            continue
        seen.add(real)
        folders.sort()
        found += [Path(folder, name) for name in names]
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot be read ({error.strerror})", path=error.filename)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path, remedy="remove or repair the link") from None


def split_into_shards(files: Sequence[InputFile], shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Cut files into shards of about `shard_bytes`; where a shard ends inside a line, it reads that line to its end."""
    return [
        Shard(file, start, min(start + shard_bytes, file.num_bytes))
        for file in files
        for start in range(0, file.num_bytes, shard_bytes)
    ]


def read_shard(shard: Shard) -> Iterator[bytes]:
    """Yield the raw lines, blank ones included, that begin inside a shard.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with shard.file.path.open("rb") as file:
            if shard.start:
                file.seek(shard.start - 1)
                file.readline()  # the rest of a line that began before; nothing when one begins exactly here
            while file.tell() < shard.end:
                line = file.readline()
                if not line:
                    return
                yield line
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=shard.file.path) from None


def first_line_number(shard: Shard) -> int:
    """Count on which line of its file a shard begins; only asked when a line must be named."""
    if not shard.start:
        return 1
    newlines = 0
    with shard.file.path.open("rb") as file:
        remaining = shard.start - 1
        while remaining > 0 and (block := file.read(min(remaining, 1 << 20))):
            newlines += block.count(b"\n")
            remaining -= len(block)
    return newlines + 2  # the line that the byte ahead of the shard is in ends before it, and lines count from 1
