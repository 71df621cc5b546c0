"""Parquet and Arrow files: their row groups and record batches, in the columns needed and some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from colossal_llama2.dataset.streams import reading_table

_ARROW_FILE = b"ARROW1"
_BATCH_BYTES = 8 << 20
_MAX_ROWS = 2048  # repeated texts are small in a file and large in memory
_BUFFER_BYTES = 1 << 20


def cut_groups(path: Path, kind: str, shard_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first, end, about how many bytes) of runs of row groups or record batches of about `shard_bytes`.

    Raises:
        InputError: the file cannot be read.
    """
    with reading_table(path):
        sizes = _parquet_sizes(path) if kind == "parquet" else _arrow_sizes(path)
    first, held = 0, 0
    for group, size in enumerate(sizes):
        if group > first and held + size > shard_bytes:
            yield first, group, held
            first, held = group, 0
        held += size
    if first < len(sizes):
        yield first, len(sizes), held


def count_rows_before(path: Path, kind: str, group: int) -> int:
    """Count the rows ahead of a row group or record batch.

    Raises:
        InputError: the file cannot be read.
    """
    with reading_table(path):
        if kind == "parquet":
            with _open_parquet(path) as file:
                return sum(file.metadata.row_group(number).num_rows for number in range(group))
        return sum(batch.num_rows for batch in _arrow_batches(path, 0, group, []))


def read_schema(path: Path, kind: str) -> Any:
    """Return a file's `pyarrow.Schema`.

    Raises:
        InputError: the file cannot be read.
    """
    with reading_table(path):
        if kind == "parquet":
            with _open_parquet(path) as file:
                return file.schema_arrow
        with pa.memory_map(str(path)) as mapped:
            return _open_arrow(mapped, None).schema


def read_batches(path: Path, kind: str, groups: tuple[int, int], columns: Sequence[str]) -> Iterator[Any]:
    """Yield the rows of row groups or record batches as `pyarrow.RecordBatch` with these columns.

    Those of parquet are of a few megabytes; those of Arrow are as they were written, mapped from the file.

    Raises:
        InputError: the file cannot be read.
    """
    with reading_table(path):
        if kind == "parquet":
            yield from _parquet_batches(path, groups, columns)
        else:
            schema = read_schema(path, kind)
            yield from _arrow_batches(path, *groups, [schema.get_field_index(name) for name in columns])


def group_bytes(path: Path, kind: str, groups: tuple[int, int]) -> Iterator[bytes | memoryview]:
    """Yield the bytes that decide what is in row groups or record batches: schema, lengths, and every column.

    Those of parquet do not depend on where in a file the groups lie.

    Raises:
        InputError: the file cannot be read.
    """
    with reading_table(path):
        yield read_schema(path, kind).to_string(show_schema_metadata=False).encode()
        yield from _parquet_bytes(path, groups) if kind == "parquet" else _arrow_bytes(path, groups)


def _open_parquet(path: Path) -> Any:
    return pq.ParquetFile(str(path), buffer_size=_BUFFER_BYTES, pre_buffer=False)


def _parquet_sizes(path: Path) -> list[int]:
    with _open_parquet(path) as file:
        groups = file.metadata.num_row_groups
        return [file.metadata.row_group(number).total_byte_size for number in range(groups)]


def _parquet_batches(path: Path, groups: tuple[int, int], columns: Sequence[str]) -> Iterator[Any]:
    with _open_parquet(path) as file:
        for number in range(*groups):
            group = file.metadata.row_group(number)
            chunks = [group.column(column) for column in range(group.num_columns)]
            num_bytes = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in columns)
            rows = max(1, min(_MAX_ROWS, _BATCH_BYTES * group.num_rows // max(num_bytes, 1)))
            yield from file.iter_batches(rows, row_groups=[number], columns=list(columns), use_threads=False)


def _arrow_sizes(path: Path) -> list[int]:
    with pa.memory_map(str(path)) as mapped:
        if mapped.read(len(_ARROW_FILE)) == _ARROW_FILE:
            num_batches = pa.ipc.open_file(mapped).num_record_batches
            return [mapped.size() // max(num_batches, 1)] * num_batches
        mapped.seek(0)
        messages = pa.ipc.MessageReader.open_stream(mapped)
        return [message.body.size for message in messages if message.type == "record batch"]


def _open_arrow(mapped: Any, fields: Sequence[int] | None) -> Any:
    options = pa.ipc.IpcReadOptions(included_fields=None if fields is None else list(fields), use_threads=False)
    mapped.seek(0)
    is_file = mapped.read(len(_ARROW_FILE)) == _ARROW_FILE
    mapped.seek(0)
    return pa.ipc.open_file(mapped, options=options) if is_file else pa.ipc.open_stream(mapped, options=options)


def _arrow_batches(path: Path, first: int, end: int, fields: Sequence[int] | None) -> Iterator[Any]:
    with pa.memory_map(str(path)) as mapped:
        reader = _open_arrow(mapped, fields)
        if isinstance(reader, pa.ipc.RecordBatchFileReader):
            yield from (reader.get_batch(number) for number in range(first, end))
            return
        for number, batch in enumerate(reader):
            if number >= end:
                return
            if number >= first:
                yield batch


def _parquet_bytes(path: Path, groups: tuple[int, int]) -> Iterator[bytes | memoryview]:
    with _open_parquet(path) as table, path.open("rb", buffering=0) as file:
        for number in range(*groups):
            group = table.metadata.row_group(number)
            yield f"{group.num_rows} rows".encode()
            for column in range(group.num_columns):
                chunk = group.column(column)
                starts = (chunk.data_page_offset, chunk.dictionary_page_offset)
                file.seek(min(start for start in starts if start))
                remaining = chunk.total_compressed_size
                yield f"{chunk.path_in_schema} {chunk.compression} {remaining}".encode()
                while remaining > 0 and (block := file.read(min(_BUFFER_BYTES, remaining))):
                    remaining -= len(block)
                    yield block


def _arrow_bytes(path: Path, groups: tuple[int, int]) -> Iterator[bytes | memoryview]:
    for batch in _arrow_batches(path, *groups, None):
        yield f"{batch.num_rows} rows".encode()
        for column in batch.columns:
            arrays = [column, column.dictionary] if pa.types.is_dictionary(column.type) else [column]
            for buffer in (buffer for array in arrays for buffer in array.buffers()):
                yield b"none" if buffer is None else f"{buffer.size} bytes".encode()
                for start in range(0, 0 if buffer is None else buffer.size, _BUFFER_BYTES):
                    yield memoryview(buffer)[start : start + _BUFFER_BYTES]
