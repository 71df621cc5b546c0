"""From a segment of any file to batches of documents: one string a document, and where its source ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from colossal_llama2.dataset.fast_lines import parse_fast
from colossal_llama2.dataset.inputs import Segment, first_line_number
from colossal_llama2.dataset.lines import BLOCK_BYTES, read_blocks, unreadable
from colossal_llama2.dataset.records import Reading, Record, Refusal, parse_pretraining_record, record_of
from colossal_llama2.errors import InputError

__all__ = ["GiantRecord", "Reading", "RecordBatch", "Refusal", "read_segment", "segment_digest"]

BATCH_CHARACTERS = 2_000_000
BOM = b"\xef\xbb\xbf"


@dataclass
class RecordBatch:
    """Documents, in order.

    Attributes:
        texts: source and target of each, as one string.
        source_characters: how many of its characters are the source.
        categories: the sub-dataset of each.
    """

    texts: list[str] = field(default_factory=list)
    source_characters: list[int] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class GiantRecord:
    """A record too large to be held: its texts come in chunks of about a million characters."""

    category: str
    source: str
    target: str

    def source_chunks(self) -> Iterator[str]:
        """Yield the source from its beginning; nothing where there is none."""
        if self.source:
            yield self.source

    def target_chunks(self) -> Iterator[str]:
        """Yield the target from its beginning."""
        yield self.target


def read_segment(segment: Segment, reading: Reading, refusals: list[Refusal]) -> Iterator[RecordBatch | GiantRecord]:
    """Yield a segment's documents in order; what is not a record is added to `refusals`.

    Raises:
        InputError: the file cannot be read, or holds what is not a record and `reading` does not skip it.
    """
    try:
        yield from _read_jsonl(segment, reading, refusals)
    except OSError as error:
        raise unreadable(segment.file.path, error) from None


def segment_digest(segment: Segment) -> bytes:
    """Return the sha256 of the bytes that decide a segment's records, and of how they are read.

    Of jsonl these are the segment's lines, and whether they begin the file: only there is a byte order mark no text.

    Raises:
        InputError: the file cannot be read.
    """
    digest = hashlib.sha256(f"{segment.file.kind} {segment.start == 0}\n".encode())
    try:
        with segment.file.path.open("rb", buffering=BLOCK_BYTES) as file:
            for block in read_blocks(file, segment.start, segment.end):
                digest.update(block)
    except OSError as error:
        raise unreadable(segment.file.path, error) from None
    return digest.digest()


def records_key(segment: Segment, reading: Reading) -> str:
    """Spell out everything that decides a segment's documents: bytes, reading, and a category from the file's name."""
    return f"{segment_digest(segment).hex()} {reading!r} {reading.category_of(segment.file)!r}"


def _read_jsonl(segment: Segment, reading: Reading, refusals: list[Refusal]) -> Iterator[RecordBatch]:
    path, category = segment.file.path, reading.category_of(segment.file)
    batch, held, before = RecordBatch(), 0, 0
    with path.open("rb", buffering=BLOCK_BYTES) as file:
        for block in read_blocks(file, segment.start, segment.end):
            if before == 0 and segment.start == 0:
                block = block.removeprefix(BOM)
            lines = block.split(b"\n")
            if not lines[-1]:
                lines.pop()
            for number, raw in enumerate(lines, before):
                record = _record(raw, segment, number, reading, refusals)
                if record is None:
                    continue
                if held and held + len(record.source) + len(record.target) > BATCH_CHARACTERS:
                    yield batch
                    batch, held = RecordBatch(), 0
                batch.texts.append(record.source + record.target)
                batch.source_characters.append(len(record.source))
                batch.categories.append(record.category if category is None else category)
                held += len(batch.texts[-1])
            before += len(lines)
    if batch.texts:
        yield batch


def _record(raw: bytes, segment: Segment, before: int, reading: Reading, refusals: list[Refusal]) -> Record | None:
    path: Path = segment.file.path
    fields = parse_fast(raw)
    try:
        if fields is not None:
            return record_of(fields, path, 0, reading)
        raw = raw.strip(b" \t\r\n")
        return parse_pretraining_record(raw, path, 0, reading) if raw else None
    except InputError as error:
        line = first_line_number(segment) + before
        if not reading.skip_bad_records:
            raise InputError(error.what, path=path, line=line, remedy=_with_skip(error)) from None
        refusals.append(Refusal(segment.file.name, line, error.what))
        return None


def _with_skip(error: InputError) -> str:
    return f"{error.remedy}, or pass --bad_records skip" if error.remedy else "mend it, or pass --bad_records skip"


@dataclass(frozen=True)
class InputOptions:
    bad_records: Literal["error", "skip"] = "error"
    deduplicate: Literal["none", "exact", "minhash"] = "none"
    dedup_threshold: float = 0.8

    @property
    def reading(self) -> Reading:
        return Reading(skip_bad_records=self.bad_records == "skip")
