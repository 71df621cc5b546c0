"""From a segment of any file to batches of documents: one string a document, and where its source ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from colossal_llama2.dataset.columnar import group_bytes
from colossal_llama2.dataset.input_options import InputOptions
from colossal_llama2.dataset.inputs import Segment
from colossal_llama2.dataset.jsonl_records import JsonlReader
from colossal_llama2.dataset.lines import BLOCK_BYTES, line_bounds
from colossal_llama2.dataset.records import GiantRecord, GiantText, Reading, RecordBatch, Refusal
from colossal_llama2.dataset.streams import open_stream
from colossal_llama2.dataset.table_records import TableReader

__all__ = [
    "GiantRecord",
    "GiantText",
    "InputOptions",
    "Reading",
    "RecordBatch",
    "Refusal",
    "read_segment",
    "records_key",
    "segment_digest",
]


def read_segment(segment: Segment, reading: Reading, refusals: list[Refusal]) -> Iterator[RecordBatch | GiantRecord]:
    """Yield a segment's documents in order; what is not a record is added to `refusals`.

    Raises:
        InputError: the file cannot be read, or holds what is not a record and `reading` does not skip it.
    """
    if segment.file.kind in ("parquet", "arrow"):
        yield from TableReader(segment, reading, refusals).read()
    else:
        yield from JsonlReader(segment, reading, refusals).read()


def segment_digest(segment: Segment) -> bytes:
    """Return the sha256 of the bytes that decide a segment's records, and of how they are read.

    Of jsonl these are the segment's lines, and whether they begin the file: only there is a byte order mark no text. Of
    parquet and Arrow they are the schema and the groups' columns.

    Raises:
        InputError: the file cannot be read.
    """
    file = segment.file
    digest = hashlib.sha256(f"{file.kind} ".encode())
    if file.kind in ("parquet", "arrow"):
        for part in group_bytes(file.path, file.kind, (segment.start, segment.end)):
            digest.update(part)
        return digest.digest()
    start, end = 0, file.num_bytes
    with open_stream(file.path, "jsonl") as stream:
        if file.kind == "jsonl":
            start, end = line_bounds(stream, segment.start, segment.end, file.num_bytes)
        digest.update(f"{start == 0} ".encode())
        stream.seek(start)
        while start < end and (block := stream.read(min(BLOCK_BYTES, end - start))):
            digest.update(block)
            start += len(block)
    return digest.digest()


def records_key(segment: Segment, reading: Reading) -> str:
    """Spell out everything that decides a segment's documents: bytes, reading, and a category from the file's name."""
    return f"{segment_digest(segment).hex()} {reading!r} {reading.category_of(segment.file)!r}"
