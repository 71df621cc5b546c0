"""From folders to shards: which files hold the corpus, and byte ranges of them that workers read on their own."""

from __future__ import annotations

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
    """List the jsonl files of folders (searched in depth) and single files, in an order that depends on names alone.

    Returns:
        The files, and the names of what was passed over because it is not jsonl.

    Raises:
        InputError: an entry is missing, holds no jsonl, or a file is named twice.
    """
    files: list[InputFile] = []
    ignored: list[str] = []
    for entry in entries:
        root = Path(entry)
        if not root.exists():
            raise InputError("does not exist", path=entry, remedy="name folders or jsonl files in --data_input_dirs")
        found = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
        named = [
            (path, f"{root.name}/{path.relative_to(root).as_posix()}" if root.is_dir() else root.name) for path in found
        ]
        jsonl = [(path, name) for path, name in named if path.suffix == ".jsonl" and not path.name.startswith(".")]
        ignored += [name for path, name in named if (path, name) not in jsonl]
        if not jsonl:
            raise InputError(
                "holds no .jsonl file", path=entry, remedy="name folders or jsonl files in --data_input_dirs"
            )
        files += [InputFile(path, name, path.stat().st_size) for path, name in jsonl]
    seen: dict[Path, str] = {}
    for file in files:
        real = file.path.resolve()
        if real in seen:
            raise InputError("is named twice by --data_input_dirs", path=file.path, remedy="name it once")
        seen[real] = file.name
    return files, ignored


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
    lines = 0
    with shard.file.path.open("rb") as file:
        remaining = shard.start - 1
        while remaining > 0 and (block := file.read(min(remaining, 1 << 20))):
            lines += block.count(b"\n")
            remaining -= len(block)
        file.seek(shard.start - 1)
        file.readline()
    return lines + 2  # those before the byte ahead of the shard, the one that line ends, and counting from 1
