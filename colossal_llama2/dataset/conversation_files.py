"""Files of alignment sets: the layout of each, and chunks of whole lines for workers to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from colossal_llama2.dataset.conversation import Place
from colossal_llama2.dataset.conversation_layouts import Layout, recognise
from colossal_llama2.dataset.inputs import InputFile
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import iterate_lines, parse_record

CHUNK_BYTES: Final = 2 << 20
KNOWN: Final = (
    "instruction/input/output, prompt/completion, messages, human/assistant, prompt/chosen/rejected, chosen and "
    "rejected transcripts, prompt with responses and scores, or prompt"
)


@dataclass(frozen=True)
class Chunk:
    """Whole lines of a file.

    Attributes:
        path: the file.
        source: number of the file.
        start: first byte.
        end: byte behind the last.
        first_line: number of its first line, counted from 1.
        layout: the layout of the file's records.
    """

    path: Path
    source: int
    start: int
    end: int
    first_line: int
    layout: Layout


def recognise_file(path: Path, skip_bad_records: bool) -> Layout | None:
    """Tell a file's layout by its first record; None where it holds none.

    Raises:
        InputError: the first line is not a record, or of no known layout, and bad records are not to be skipped.
    """
    with open_file(path) as file:
        for line, raw in iterate_lines(file):
            try:
                layout = recognise(parse_record(raw, path, line))
            except InputError as error:
                if not skip_bad_records:
                    raise InputError(error.what, path=path, line=line, remedy=with_skip(error.remedy)) from None
                continue
            if layout is not None:
                return layout
            if not skip_bad_records:
                what = "is a record of no layout that is known"
                raise Place(path, line).complaint(what, with_skip(f"write {KNOWN}"))
    return None


def split_files(
    files: Sequence[InputFile], layouts: Sequence[Layout | None], chunk_bytes: int = CHUNK_BYTES
) -> list[Chunk]:
    """Cut files into chunks of about `chunk_bytes`, each ending with a line."""
    chunks = []
    for source, (file, layout) in enumerate(zip(files, layouts, strict=True)):
        if layout is not None:
            for start, end, line in _cuts(file.path, chunk_bytes):
                chunks.append(Chunk(file.path, source, start, end, line, layout))
    return chunks


def read_chunk(chunk: Chunk) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, stripped bytes) of the lines that are not blank.

    Raises:
        InputError: the file cannot be read.
    """
    with open_file(chunk.path) as file:
        file.seek(chunk.start)
        content = file.read(chunk.end - chunk.start)
    yield from iterate_lines(content.split(b"\n"), chunk.first_line)


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; what goes wrong while it is open is said with its name.

    Raises:
        InputError: the file cannot be opened or read.
    """
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None


def with_skip(remedy: str | None) -> str:
    """Add to a remedy that bad records can be skipped."""
    return f"{remedy or 'mend it'}, or pass --bad_records skip"


def first_cut(path: Path, chunk_bytes: int) -> int:
    """Return where the first chunk of a file ends."""
    return next((end for _, end, _ in _cuts(path, chunk_bytes)), 0)


def _cuts(path: Path, chunk_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, first line) of chunks."""
    start, line = 0, 1
    with open_file(path) as file:
        while block := file.read(chunk_bytes):
            rest = b"" if block.endswith(b"\n") else file.readline()
            end = start + len(block) + len(rest)
            yield start, end, line
            line += block.count(b"\n") + rest.count(b"\n")
            start = end
