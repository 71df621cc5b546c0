"""From folders, files and patterns to shards: which files hold the corpus, and which parts of them go together."""

from __future__ import annotations

import fnmatch
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from colossal_llama2.dataset import columnar, lines
from colossal_llama2.errors import InputError

SHARD_BYTES = 4 << 20
_FILES_A_SHARD = 4096
Kind = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow"]
_KINDS: tuple[Kind, ...] = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow")
_REMEDY = "name folders, files or patterns in --data_input_dirs"
_KNOWN = ", ".join(f".{kind}" for kind in _KINDS)


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of the corpus; small, because there may be a million of them.

    Attributes:
        root: the folder or file it was found through.
        name: tells it in the ledger without saying where it lies: the root's last part, then the way below the root.
        num_bytes: its size.
        kind: how it is read, by its suffix.
    """

    root: str
    name: str
    num_bytes: int
    kind: Kind

    @property
    def path(self) -> Path:
        """Where it lies."""
        _, below, rest = self.name.partition("/")
        return Path(self.root, rest) if below else Path(self.root)


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a file that is read on its own.

    Attributes:
        file: the file.
        start: of plain jsonl the first byte (its lines are those that begin in [start, end)), of compressed jsonl 0,
            otherwise the first row group (parquet) or record batch (arrow).
        end: the same, behind the last one; of compressed jsonl the file's size.
    """

    file: InputFile
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Shard:
    """What a worker encodes in one go: a part of a large file, or several small files."""

    segments: tuple[Segment, ...]


def find_inputs(entries: Sequence[str]) -> tuple[list[InputFile], list[str]]:
    """List the files of folders (searched in depth, links followed), of patterns (``*``, ``?``, ``[``, ``**``), and
    single files.

    The order depends on names alone.

    Returns:
        The files, and the names of what was passed over because it is of no kind that can be read.

    Raises:
        InputError: an entry is missing, unreadable or holds nothing that can be read, or a file is named twice.
    """
    files: list[InputFile] = []
    ignored: list[str] = []
    nodes = array("Q")
    roots = [_root(entry) for entry in entries]
    for entry, root, title in zip(entries, roots, _titles(roots), strict=True):
        before = len(files)
        for below in _below(entry, root):
            name = f"{title}/{below}" if below else title
            kind = _kind(name)
            if kind is None:
                ignored.append(name)
                continue
            node = _stat(os.path.join(root, below) if below else root)  # noqa: PTH118 (a Path a file is slow)
            files.append(InputFile(root, name, node.st_size, kind))
            nodes.extend((node.st_dev, node.st_ino))
        if len(files) == before:
            raise InputError(f"holds no file of a kind that can be read ({_KNOWN})", path=entry, remedy=_REMEDY)
    _refuse_repeated(files, nodes)
    return files, ignored


def split_into_shards(files: Sequence[InputFile], shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Cut files into shards of about `shard_bytes` of input; small files share one, in order, but at most 4,096 do.

    Plain jsonl is cut where lines begin, so that a line of many shards' size is one segment and is read once.

    Raises:
        InputError: a file cannot be read.
    """
    shards: list[Shard] = []
    waiting: list[Segment] = []
    held = 0
    for file in files:
        for start, end, num_bytes in _cuts(file, shard_bytes):
            num_bytes = max(num_bytes, shard_bytes // _FILES_A_SHARD)  # what it costs to open one
            if waiting and held + num_bytes > shard_bytes:
                shards.append(Shard(tuple(waiting)))
                waiting, held = [], 0
            waiting.append(Segment(file, start, end))
            held += num_bytes
    if waiting:
        shards.append(Shard(tuple(waiting)))
    return shards


def first_line_number(segment: Segment) -> int:
    """Count on which line of its file (of parquet and Arrow: on which row) a segment begins, from 1.

    Only asked when a line must be named: of plain jsonl it reads the file up to there.
    """
    if not segment.start:
        return 1
    if segment.file.kind == "jsonl":
        return lines.count_lines_before(segment.file.path, segment.start) + 1
    return columnar.count_rows_before(segment.file.path, segment.file.kind, segment.start) + 1


def _cuts(file: InputFile, shard_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, about how many bytes) of a file's segments."""
    if not file.num_bytes:
        return
    if file.kind in ("parquet", "arrow"):
        yield from columnar.cut_groups(file.path, file.kind, shard_bytes)
    elif file.kind == "jsonl" and file.num_bytes > shard_bytes:
        yield from ((start, end, end - start) for start, end in lines.cut_at_lines(file.path, shard_bytes))
    else:
        yield 0, file.num_bytes, file.num_bytes


def _kind(name: str) -> Kind | None:
    last = name.rpartition("/")[2]
    if last.startswith("."):
        return None
    return next((kind for kind in _KINDS if last.endswith(f".{kind}")), None)


def _has_magic(text: str) -> bool:
    return any(character in text for character in "*?[")


def _root(entry: str) -> str:
    """Return the folder or file itself, or the folder in which a pattern's first wildcard stands."""
    if os.path.exists(entry):  # noqa: PTH110
        return entry
    if not _has_magic(entry):
        raise InputError("does not exist", path=entry, remedy=_REMEDY)
    parts = entry.split("/")
    fixed = "/".join(parts[: next(number for number, part in enumerate(parts) if _has_magic(part))])
    root = fixed or ("/" if entry.startswith("/") else ".")
    if not Path(root).is_dir():
        raise InputError("does not exist", path=entry, remedy=_REMEDY)
    return root


def _titles(roots: Sequence[str]) -> list[str]:
    """Name roots for the ledger by their last part; another one of that name gets a number."""
    places = [os.path.abspath(root) for root in roots]  # noqa: PTH100 (resolve() would follow links)
    titles: dict[str, str] = {}
    used: dict[str, int] = {}
    for place in places:
        if place not in titles:
            name = os.path.basename(place)  # noqa: PTH119
            used[name] = used.get(name, 0) + 1
            titles[place] = name if used[name] == 1 else f"{name}#{used[name]}"
    return [titles[place] for place in places]


def _below(entry: str, root: str) -> list[str]:
    """List an entry's files by their way below its root, by name; that of the root itself is empty."""
    if root == entry:
        return [""] if Path(root).is_file() else _sorted(_walk(root, ""))
    parts = [part for part in entry.split("/") if part not in ("", ".")]
    first = next(number for number, part in enumerate(parts) if _has_magic(part))
    return _sorted(set(_expand(root, "", parts[first:])))


def _sorted(paths: Iterator[str] | set[str]) -> list[str]:
    return sorted(paths, key=lambda path: path.split("/"))


def _walk(root: str, below: str) -> Iterator[str]:
    """Yield what is not a folder in `root`/`below`, in depth; a folder that links lead to twice is listed once.

    `Path.rglob` would pass over links to folders and over folders that cannot be opened without a word.
    """
    for folder, names in _folders(root, below):
        yield from (_join(folder, name) for name in names)


def _folders(root: str, below: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (way below the root, names of what is not a folder in it) of a folder and of those in it."""
    seen: set[str] = set()
    top = os.path.join(root, below)  # noqa: PTH118
    for folder, folders, names in os.walk(top, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()  # a link back to where we were
            continue
        seen.add(real)
        folders.sort()
        inside = os.path.relpath(folder, top)
        yield _join(below, "" if inside == "." else inside), names


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _expand(root: str, below: str, parts: Sequence[str]) -> Iterator[str]:
    """Yield the files that the rest of a pattern names below a folder; a folder that it names is searched in depth."""
    place = Path(root, below)
    if not parts:
        if place.is_dir():
            yield from _walk(root, below)
        elif place.exists() or place.is_symlink():
            yield below
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        for folder, _ in _folders(root, below):
            yield from _expand(root, folder, rest) if rest else _walk(root, folder)
    elif not _has_magic(part):
        yield from _expand(root, _join(below, part), rest)
    elif place.is_dir():
        try:
            names = sorted(os.listdir(place))  # noqa: PTH208
        except OSError as error:
            _refuse(error)
        for name in names:
            if fnmatch.fnmatchcase(name, part) and not (name.startswith(".") and not part.startswith(".")):
                yield from _expand(root, _join(below, name), rest)


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot be read ({error.strerror})", path=error.filename)


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path, remedy="remove or repair the link") from None


def _refuse_repeated(files: Sequence[InputFile], nodes: array[int]) -> None:
    """Refuse a file named twice; only files of one inode can be one, so that paths are resolved for few."""
    pairs = np.frombuffer(nodes, dtype=np.uint64).reshape(-1, 2) if nodes else np.zeros((0, 2), dtype=np.uint64)
    _, inverse, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    seen: set[Path] = set()
    for number in np.flatnonzero(counts[inverse.reshape(-1)] > 1).tolist():
        real = files[number].path.resolve()
        if real in seen:
            raise InputError("is named twice by --data_input_dirs", path=files[number].path, remedy="name it once")
        seen.add(real)
