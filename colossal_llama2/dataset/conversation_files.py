"""Files of alignment sets: the layout of each, and chunks of whole records for workers to read."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, Final

import orjson

from colossal_llama2.dataset import columnar
from colossal_llama2.dataset.conversation import Place
from colossal_llama2.dataset.conversation_layouts import Layout, recognise
from colossal_llama2.dataset.inputs import InputFile
from colossal_llama2.dataset.streams import open_stream
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import iterate_lines, parse_record

CHUNK_BYTES: Final = 2 << 20
# To begin in the middle of a compressed file all before it is decompressed again, so there are to be few middles.
_PACKED_CHUNK_BYTES: Final = 16 << 20
_ROW_BYTES: Final = 1 << 10  # about what a record takes
_TABLES: Final = ("parquet", "arrow")
KNOWN: Final = (
    "instruction/input/output, prompt/completion, messages, human/assistant, prompt/chosen/rejected, chosen and "
    "rejected transcripts, prompt with responses and scores, or prompt"
)


@dataclass(frozen=True)
class Chunk:
    """Whole records of a file.

    Attributes:
        file: the file.
        source: number of the file.
        start: first byte of the text that comes out of a jsonl file; first row group or record batch of a table.
        end: byte, row group or record batch behind the last.
        first_line: number of its first line or row, counted from 1.
        layout: the layout of the file's records.
        most_rows: rows of a table that are read at most; all, if None.
    """

    file: InputFile
    source: int
    start: int
    end: int
    first_line: int
    layout: Layout
    most_rows: int | None = None


def recognise_file(file: InputFile, skip_bad_records: bool) -> Layout | None:
    """Tell a file's layout by its first record; None where it holds none.

    Raises:
        InputError: the file cannot be read, or its first line is not a record, or of no layout that is known, and bad
            records are not to be skipped.
    """
    for line, raw in _first_records(file):
        try:
            layout = recognise(parse_record(raw, file.path, line))
        except InputError as error:
            if not skip_bad_records:
                raise InputError(error.what, path=file.path, line=line, remedy=with_skip(error.remedy)) from None
            continue
        if layout is not None:
            return layout
        if not skip_bad_records:
            what = "is a record of no layout that is known"
            raise Place(file.path, line).complaint(what, with_skip(f"write {KNOWN}"))
    return None


def split_files(
    files: Sequence[InputFile], layouts: Sequence[Layout | None], chunk_bytes: int = CHUNK_BYTES
) -> list[Chunk]:
    """Cut files into chunks of about `chunk_bytes`, each ending with a line or a row; compressed ones into larger ones.

    Raises:
        InputError: a file cannot be read.
    """
    chunks = []
    for source, (file, layout) in enumerate(zip(files, layouts, strict=True)):
        if layout is not None:
            size = chunk_bytes if file.kind not in ("jsonl.gz", "jsonl.zst") else max(chunk_bytes, _PACKED_CHUNK_BYTES)
            for start, end, line in _cuts(file, size):
                chunks.append(Chunk(file, source, start, end, line, layout))
    return chunks


def read_chunk(chunk: Chunk) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, stripped bytes) of the lines that are not blank, or (row number, its JSON) of a table.

    Raises:
        InputError: the file cannot be read.
    """
    if chunk.file.kind in _TABLES:
        yield from islice(_rows(chunk.file, chunk.start, chunk.end, chunk.first_line), chunk.most_rows)
        return
    with _open_buffered(chunk.file, chunk.start) as stream:
        content = stream.read(chunk.end - chunk.start)
    yield from iterate_lines(content.split(b"\n"), chunk.first_line)


def first_chunk(file: InputFile, source: int, layout: Layout, chunk_bytes: int) -> Chunk:
    """Return the first chunk of a file, of about `chunk_bytes`; without records, where there are none.

    Of a table, whose first row group may be all of it, as many rows as stand for that many bytes.
    """
    start, end, line = next(_cuts(file, chunk_bytes), (0, 0, 1))
    return Chunk(file, source, start, end, line, layout, most_rows=max(1, chunk_bytes // _ROW_BYTES))


def with_skip(remedy: str | None) -> str:
    """Add to a remedy that bad records can be skipped."""
    return f"{remedy or 'mend it'}, or pass --bad_records skip"


def _first_records(file: InputFile) -> Iterator[tuple[int, bytes]]:
    if file.kind not in _TABLES:
        with _open_buffered(file, 0) as stream:
            yield from iterate_lines(stream)
        return
    for start, end, row in _cuts(file, 1):
        yield from _rows(file, start, end, row)


@contextmanager
def _open_buffered(file: InputFile, start: int) -> Iterator[BinaryIO]:
    with open_stream(file.path, file.kind, start) as stream:
        yield io.BufferedReader(stream)  # type: ignore[type-var]  # pyarrow's streams are raw enough


def _rows(file: InputFile, start: int, end: int, first_row: int) -> Iterator[tuple[int, bytes]]:
    """Yield rows of a table as the lines that they would be in jsonl; what JSON has no word for is spelled out."""
    names = list(columnar.read_schema(file.path, file.kind).names)
    row = first_row
    for batch in columnar.read_batches(file.path, file.kind, (start, end), names):
        for record in batch.to_pylist():
            yield row, orjson.dumps(record, default=str)
            row += 1


def _cuts(file: InputFile, chunk_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, first line or row) of chunks."""
    if file.kind in _TABLES:
        for start, end, _ in columnar.cut_groups(file.path, file.kind, chunk_bytes):
            yield start, end, columnar.count_rows_before(file.path, file.kind, start) + 1
        return
    start, line = 0, 1
    with _open_buffered(file, 0) as stream:
        while block := stream.read(chunk_bytes):
            rest = b"" if block.endswith(b"\n") else stream.readline()
            end = start + len(block) + len(rest)
            yield start, end, line
            line += block.count(b"\n") + rest.count(b"\n")
            start = end
