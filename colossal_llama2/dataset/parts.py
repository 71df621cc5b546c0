"""One bucket on disk: an Arrow folder that `datasets.load_from_disk` reads, and the same rows as jsonl.

The files are written here rather than by `datasets`, which would put a random fingerprint and the time into them: the
same corpus must give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

COLUMNS = ("input_ids", "labels", "seq_lens")
RANKED_COLUMNS = (*COLUMNS, "ranks")
IGNORED = -100
ARROW_FILE = "data-00000-of-00001.arrow"
_ROWS_PER_BATCH = 256


@dataclass(frozen=True)
class Row:
    """One spliced row.

    Attributes:
        input_ids: [T] int32.
        labels: [T] int32, -100 where nothing is learned.
        seq_lens: [N] int32, lengths of the pieces of documents in it, in order, summing to T.
        ranks: [N] int32, which piece is the better answer, 0 the best; None where nothing is compared.
    """

    input_ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    seq_lens: npt.NDArray[np.int32]
    ranks: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True)
class RowBatch:
    """Several rows behind one another.

    Attributes:
        input_ids: [T] int32, of all rows.
        labels: [T] int32.
        seq_lens: [N] int32.
        offsets: [R + 1] int64, where each row begins in `input_ids`.
        piece_offsets: [R + 1] int64, where each row begins in `seq_lens`.
    """

    input_ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    seq_lens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    piece_offsets: npt.NDArray[np.int64]

    @staticmethod
    def of(rows: Sequence[Row]) -> RowBatch:
        """Put rows behind one another."""
        input_ids, labels, seq_lens = (np.concatenate([getattr(row, name) for row in rows]) for name in COLUMNS)
        offsets = np.cumsum([0, *(len(row.input_ids) for row in rows)])
        return RowBatch(input_ids, labels, seq_lens, offsets, np.cumsum([0, *(len(row.seq_lens) for row in rows)]))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1


def part_name(bucket: int) -> str:
    """Name of a bucket's folder."""
    return f"part-{bucket:05d}"


class PartWriter:
    """Writes one bucket, holding a few hundred rows at a time.

    Args:
        arrow_dir: parent of the Arrow folders.
        jsonl_dir: parent of the jsonl files, if they are wanted.
        bucket: the bucket's number.
    """

    def __init__(self, arrow_dir: Path, jsonl_dir: Path | None, bucket: int) -> None:
        self._folder = arrow_dir / part_name(bucket)
        self._folder.mkdir()
        self._file = _HashedFile(self._folder / ARROW_FILE)
        self._jsonl = None if jsonl_dir is None else (jsonl_dir / f"{part_name(bucket)}.jsonl").open("wb")
        self._stream = pa.ipc.new_stream(self._file, _schema())
        self._rows: list[Row] = []

    def __enter__(self) -> PartWriter:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the files."""
        self._flush()
        self._stream.close()
        self._file.close()
        if self._jsonl is not None:
            self._jsonl.close()
        if kind is None:
            self._write_metadata()

    def write(self, row: Row) -> None:
        """Add a row."""
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_BATCH:
            self._flush()

    def write_batch(self, batch: RowBatch) -> None:
        """Add several rows, as one record batch."""
        self._flush()
        values = (batch.input_ids, batch.labels, batch.seq_lens)
        bounds = (batch.offsets, batch.offsets, batch.piece_offsets)
        columns = [
            pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(column))
            for column, offsets in zip(values, bounds, strict=True)
        ]
        self._stream.write_batch(pa.record_batch(columns, schema=_schema()))
        if self._jsonl is None:
            return
        for row in range(len(batch)):
            record = {
                name: column[offsets[row] : offsets[row + 1]]
                for name, column, offsets in zip(COLUMNS, values, bounds, strict=True)
            }
            self._jsonl.write(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))

    def content_hash(self) -> str:
        """Return the sha256 of the finished Arrow file."""
        assert self._file.closed, "the file is finished"
        return self._file.sha256.hexdigest()

    def _flush(self) -> None:
        if self._rows:
            rows, self._rows = self._rows, []
            self.write_batch(RowBatch.of(rows))

    def _write_metadata(self) -> None:
        info = {"citation": "", "description": "", "features": _features(), "homepage": "", "license": ""}
        state: dict[str, Any] = {
            "_data_files": [{"filename": ARROW_FILE}],
            "_fingerprint": self.content_hash()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        for name, content in (("dataset_info.json", info), ("state.json", state)):
            (self._folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class _HashedFile(io.RawIOBase):
    """A file that is hashed while it is written, so that it need not be read again."""

    def __init__(self, path: Path) -> None:
        self.sha256 = hashlib.sha256()
        self._file = path.open("wb")

    def writable(self) -> bool:
        """Say that it can be written."""
        return True

    def write(self, content: Any) -> int:
        """Write and hash."""
        self.sha256.update(content)
        return self._file.write(content)

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
            super().close()


class PartReader:
    """Reads rows of a bucket from the memory-mapped Arrow file, by number.

    Args:
        folder: the bucket's.
        columns: which it must have, in this order, and no others.

    Raises:
        OSError: the file is not there.
        ValueError: it is not a whole Arrow file, or does not hold our columns.
    """

    def __init__(self, folder: Path, columns: Sequence[str] = COLUMNS) -> None:
        # The arrays outlive the open file: a corpus may have more parts than a process may open files.
        with pa.memory_map(str(folder / ARROW_FILE)) as source:
            reader = pa.ipc.open_stream(source)
            if not reader.schema.equals(_schema(columns)):
                raise ValueError(f"its columns are not {', '.join(columns)} as lists of int32")
            batches = list(_batches(reader))
        self._columns = [
            tuple(_as_arrays(batch.column(batch.schema.get_field_index(c))) for c in columns) for batch in batches
        ]
        self._firsts = np.concatenate([[0], np.cumsum([batch.num_rows for batch in batches])]).astype(np.int64)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._firsts[-1])

    def row(self, index: int) -> Row:
        """Return a row; its arrays lie in the mapped file."""
        batch = int(np.searchsorted(self._firsts, index, side="right")) - 1
        inside = index - int(self._firsts[batch])
        return Row(*(values[offsets[inside] : offsets[inside + 1]] for values, offsets in self._columns[batch]))


def _batches(reader: Any) -> Iterator[Any]:
    yield from reader


def _as_arrays(column: Any) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    return column.values.to_numpy(), column.offsets.to_numpy()


def _features(columns: Sequence[str] = COLUMNS) -> dict[str, Any]:
    return {name: {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"} for name in columns}


def _schema(columns: Sequence[str] = COLUMNS) -> Any:
    fields = [pa.field(name, pa.list_(pa.int32())) for name in columns]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": _features(columns)}})})
