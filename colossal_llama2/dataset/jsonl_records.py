"""Documents from jsonl, plain or compressed: the fast way where it is certain, the exact way for everything else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from colossal_llama2.dataset.batching import Batching
from colossal_llama2.dataset.fast_lines import parse_block
from colossal_llama2.dataset.giant_line import HELD_CHARACTERS, GiantLine, scan_line
from colossal_llama2.dataset.inputs import InputFile, Segment
from colossal_llama2.dataset.json_text import decode_stream
from colossal_llama2.dataset.lines import MAX_LINE_BYTES, LongLine, line_bounds, read_lines
from colossal_llama2.dataset.records import (
    GiantRecord,
    GiantText,
    Reading,
    RecordBatch,
    Refusal,
    parse_pretraining_record,
    quick_chooser,
    record_of,
)
from colossal_llama2.dataset.refusing import refuse
from colossal_llama2.dataset.streams import open_stream
from colossal_llama2.errors import InputError

PART_BYTES = 2 << 20
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"


class JsonlReader:
    """Reads one segment."""

    def __init__(self, segment: Segment, reading: Reading, refusals: list[Refusal]) -> None:
        self._segment, self._reading, self._refusals = segment, reading, refusals
        self._category = reading.category_of(segment.file)
        self._choose = quick_chooser(reading, self._category)
        self._batching = Batching()
        self._lines = 0  # of the segment, so far

    def read(self) -> Iterator[RecordBatch | GiantRecord]:
        """Yield the documents in order; see `reading.read_segment`."""
        file = self._segment.file
        with open_stream(file.path, file.kind) as stream:
            start, end = 0, None
            if file.kind == "jsonl":
                start, end = line_bounds(stream, self._segment.start, self._segment.end, file.num_bytes)
                stream.seek(start)
            at_beginning = start == 0
            for lines in read_lines(stream, start, end, MAX_LINE_BYTES):
                if isinstance(lines, LongLine):
                    giant = self._read_long_line(lines, at_beginning)
                    if giant is not None:
                        yield from self._batching.rest()
                        yield giant
                else:
                    yield from self._read_lines(lines.removeprefix(_BOM) if at_beginning else lines)
                at_beginning = False
        yield from self._batching.rest()

    def _read_lines(self, block: bytes) -> Iterator[RecordBatch]:
        if not block:
            return  # nothing but a byte order mark
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        choose, add = self._choose, self._batching.add
        for number, fields in enumerate(parse_block(block, lines)):
            found = None if fields is None else choose(fields)
            if found is None:
                found = self._read_exactly(lines[number], self._lines + number)
                if found is None:
                    continue
            full = add(*found)
            if full is not None:
                yield full
        self._lines += len(lines)

    def _read_exactly(self, raw: bytes, before: int) -> tuple[str, str, str] | None:
        raw = raw.strip(_BLANK)
        if not raw:
            return None
        try:
            record = parse_pretraining_record(raw, self._segment.file.path, 0, self._reading)
        except InputError as error:
            refuse(error, self._segment, before, self._reading, self._refusals)
            return None
        return record.source, record.target, record.category if self._category is None else self._category

    def _read_long_line(self, line: LongLine, at_beginning: bool) -> GiantRecord | None:
        self._lines += 1
        blocks, start = line.blocks, line.start
        if at_beginning:
            first = next(blocks)
            start += len(_BOM) if first.startswith(_BOM) else 0
            blocks = _before(first.removeprefix(_BOM), blocks)
        path = self._segment.file.path
        try:
            giant = scan_line(blocks, path, 0, HELD_CHARACTERS)
            if giant is None:
                return None
            record = record_of(giant.fields, path, 0, self._reading)
        except InputError as error:
            refuse(error, self._segment, self._lines - 1, self._reading, self._refusals)
            return None
        source, target, category = (
            _giant_text(text, giant, self._segment.file, start)
            for text in (record.source, record.target, record.category if self._category is None else self._category)
        )
        return GiantRecord(source, target, "".join(category.chunks()))


@dataclass(frozen=True)
class _TextInFile:
    """A string of a giant line, read from the file whenever it is wanted."""

    file: InputFile
    start: int
    num_bytes: int

    def __call__(self) -> Iterator[str]:
        """Yield its text part by part."""
        with open_stream(self.file.path, self.file.kind, self.start) as stream:
            for text in decode_stream(stream.read, self.num_bytes, PART_BYTES):
                if text is None:
                    raise InputError("was changed while it was read", path=self.file.path, remedy="start again")
                yield text


def _giant_text(text: str, giant: GiantLine, file: InputFile, start: int) -> GiantText:
    where = giant.strings.get(text)
    if where is None:
        return GiantText(len(text), lambda: iter([text] if text else []))
    return GiantText(where.characters, _TextInFile(file, start + where.start, where.end - where.start))


def _before(first: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from blocks
