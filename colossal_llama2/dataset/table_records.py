"""Documents from the rows of parquet and Arrow: a column a field, and a null where the record has none."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from colossal_llama2.dataset.batching import Batching
from colossal_llama2.dataset.columnar import read_batches, read_schema
from colossal_llama2.dataset.inputs import Segment
from colossal_llama2.dataset.lines import MAX_LINE_BYTES
from colossal_llama2.dataset.records import (
    GiantRecord,
    GiantText,
    Reading,
    RecordBatch,
    Refusal,
    chosen_fields,
    record_of,
)
from colossal_llama2.dataset.refusing import refuse
from colossal_llama2.dataset.streams import reading_table
from colossal_llama2.errors import InputError

_SLICE_BYTES = 8 << 20
_SLICE_ROWS = 4096
_CHUNK_BYTES = 2 << 20


class TableReader:
    """Reads one segment."""

    def __init__(self, segment: Segment, reading: Reading, refusals: list[Refusal]) -> None:
        self._segment, self._reading, self._refusals = segment, reading, refusals
        self._path = segment.file.path
        self._category = reading.category_of(segment.file)
        self._batching = Batching()
        self._rows = 0  # of the segment, so far

    def read(self) -> Iterator[RecordBatch | GiantRecord]:
        """Yield the documents in order; see `reading.read_segment`."""
        with reading_table(self._path):
            columns = _choose_columns(read_schema(self._path, self._segment.file.kind), self._reading, self._path)
        names = list(dict.fromkeys(name for name in (columns.target, columns.source, columns.category) if name))
        groups = (self._segment.start, self._segment.end)
        for batch in read_batches(self._path, self._segment.file.kind, groups, names):
            with reading_table(self._path):
                whole = {name: _checked(batch.column(name)) for name in names}
            for rows in _slices(list(whole.values())):
                parts = {name: column.slice(rows.start, len(rows)) for name, column in whole.items()}
                parts = {name: part.cast(pa.large_string()) for name, part in parts.items()}
                is_giant = len(rows) == 1 and sum(int(_lengths(part)[0]) for part in parts.values()) > MAX_LINE_BYTES
                yield from self._read_giant(columns, parts) if is_giant else self._read_rows(columns, parts)
                self._rows += len(rows)
        yield from self._batching.rest()

    def _read_rows(self, columns: _Columns, parts: dict[str, Any]) -> Iterator[RecordBatch]:
        values = {name: _strings(part) for name, part in parts.items()}
        sources = values[columns.source] if columns.source else repeat(None)
        categories = values[columns.category] if columns.category else repeat(None)
        default = self._category if self._category is not None else self._reading.default_category
        rows = zip(values[columns.target], sources, categories, strict=False)
        for number, (target, source, category) in enumerate(rows):
            if not target or isinstance(target, bytes) or isinstance(source, bytes) or isinstance(category, bytes):
                found = {name: column[number] for name, column in values.items() if column[number] is not None}
                self._refuse(columns, {columns.target: None, **found}, number)
                continue
            batch = self._batching.add(source or "", target, category or default)
            if batch is not None:
                yield batch

    def _read_giant(self, columns: _Columns, parts: dict[str, Any]) -> Iterator[RecordBatch | GiantRecord]:
        """Read a row that is too large for a batch: its texts stay where they are."""
        texts = {name: _GiantValue(part[0].as_buffer()) for name, part in parts.items() if part[0].is_valid}
        found: dict[str, Any] = {columns.target: None}
        for name, text in texts.items():
            found[name] = text.fault() or ("a text" if len(text.buffer) else "")
        if not found[columns.target] or bytes in map(type, found.values()):
            self._refuse(columns, found, 0)
            return
        yield from self._batching.rest()
        category = "".join(texts[columns.category]()) if columns.category in texts else ""
        default = self._category if self._category is not None else self._reading.default_category
        source = texts[columns.source].as_text() if columns.source in texts else GiantText(0, lambda: iter(()))
        yield GiantRecord(source, texts[columns.target].as_text(), category or default)

    def _refuse(self, columns: _Columns, fields: dict[str, Any], before: int) -> None:
        """Refuse a row for the first reason there is, in the order and words of any record."""
        reading = replace(self._reading, text_field=None, source_field=columns.source, target_field=columns.target)
        try:
            for name, value in fields.items():
                if isinstance(value, bytes):
                    _complain_of(name, value, self._path)
            record_of(fields, self._path, 0, reading)
        except InputError as error:
            refuse(error, self._segment, self._rows + before, self._reading, self._refusals)
            return
        raise AssertionError("a row that one way refuses and the other accepts")


@dataclass(frozen=True)
class _Columns:
    """The columns that are read; None where there is none."""

    target: str
    source: str | None
    category: str | None


def _choose_columns(schema: Any, reading: Reading, path: Path) -> _Columns:
    """Choose the columns by the fields' names.

    Raises:
        InputError: none can be the text, more than one could be, or one holds no strings.
    """
    names = schema.names
    source, target = chosen_fields(dict.fromkeys(names), reading, path, None, "table")
    if target not in names:
        remedy = "name the column with --text_field or --target_field"
        raise InputError(f'no column "{target}" among {", ".join(names)}', path=path, remedy=remedy)
    category = reading.category_field if reading.category_from == "field" else None
    columns = _Columns(target, source if source in names else None, category if category in names else None)
    for name in (columns.target, columns.source, columns.category):
        if name is None:
            continue
        if names.count(name) > 1:
            raise InputError(f'the column "{name}" stands twice', path=path, remedy="rename one of them")
        kind = schema.field(name).type
        if not _holds_strings(kind.value_type if pa.types.is_dictionary(kind) else kind):
            raise InputError(f'the column "{name}" holds {kind}, not strings', path=path, remedy="name another")
    return columns


def _holds_strings(kind: Any) -> bool:
    types = pa.types
    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view, types.is_null))


def _checked(column: Any) -> Any:
    """Return a column whose offsets and indices are known to be sound, and that every function knows.

    Mapped files are not checked when they are opened. Whether the bytes are UTF-8 is asked row by row.
    """
    if pa.types.is_dictionary(column.type):
        return pa.DictionaryArray.from_arrays(column.indices, _checked(column.dictionary))
    if pa.types.is_null(column.type):
        return column.cast(pa.large_string())
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    is_large = pa.types.is_large_string(column.type)
    column.view(pa.large_binary() if is_large else pa.binary()).validate(full=True)
    return column.cast(pa.large_string())


def _lengths(column: Any) -> npt.NDArray[np.int64]:
    """Return the bytes of each row's text; 0 for a null."""
    if pa.types.is_dictionary(column.type):
        lengths = pc.binary_length(column.dictionary).take(column.indices)
    else:
        lengths = pc.binary_length(column)
    return np.asarray(lengths.fill_null(0), dtype=np.int64)


def _slices(columns: list[Any]) -> Iterator[range]:
    """Cut rows into runs that are small enough to be held; a large row is one by itself."""
    ends = np.cumsum(sum(map(_lengths, columns)))
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        end = int(np.searchsorted(ends, before + _SLICE_BYTES, side="right"))
        end = min(max(end, start + 1), start + _SLICE_ROWS)
        yield range(start, end)
        start = end


def _strings(part: Any) -> list[str | bytes | None]:
    """Return the rows' texts; None for a null, bytes where they are not UTF-8."""
    try:
        texts: list[str | bytes | None] = part.to_numpy(zero_copy_only=False).tolist()
    except pa.ArrowException:
        return [_decoded(value) for value in part.cast(pa.large_binary()).to_pylist()]
    return texts


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return value


def _complain_of(name: str, value: bytes, path: Path) -> None:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f'"{name}" is not UTF-8 (byte 0x{value[error.start]:02x} at byte {error.start + 1})'
        raise InputError(what, path=path, remedy="convert it to UTF-8") from None


@dataclass(frozen=True)
class _GiantValue:
    """A value that stays in the table's buffer."""

    buffer: Any

    def __call__(self) -> Iterator[str]:
        """Yield its text part by part."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        view = memoryview(self.buffer)
        for start in range(0, len(view), _CHUNK_BYTES):
            yield decoder.decode(view[start : start + _CHUNK_BYTES], start + _CHUNK_BYTES >= len(view))

    def fault(self) -> bytes | None:
        """Return the value up to where it ceases to be UTF-8, or None."""
        try:
            for _ in self():
                pass
        except UnicodeDecodeError:
            return bytes(self.buffer)
        return None

    def as_text(self) -> GiantText:
        """Return it as what a giant record holds."""
        return GiantText(sum(map(len, self())), self)
