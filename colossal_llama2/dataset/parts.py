"""One bucket on disk: an Arrow folder that `datasets.load_from_disk` reads, and the same rows as jsonl.

The files are written here rather than by `datasets`, which would put a random fingerprint and the time into them: the
same corpus must give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

COLUMNS = ("input_ids", "labels", "seq_lens")
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
    """

    input_ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    seq_lens: npt.NDArray[np.int32]


def part_name(bucket: int) -> str:
    """Name of a bucket's folder."""
    return f"part-{bucket:05d}"


class PartWriter:
    """Writes one bucket row by row, holding a few hundred rows at a time.

    Args:
        arrow_dir: parent of the Arrow folders.
        jsonl_dir: parent of the jsonl files.
        bucket: the bucket's number.
    """

    def __init__(self, arrow_dir: Path, jsonl_dir: Path, bucket: int) -> None:
        self._folder = arrow_dir / part_name(bucket)
        self._folder.mkdir()
        self._arrow_path = self._folder / ARROW_FILE
        self._jsonl = (jsonl_dir / f"{part_name(bucket)}.jsonl").open("wb")
        self._stream = pa.ipc.new_stream(str(self._arrow_path), _schema())
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
        self._jsonl.close()
        if kind is None:
            self._write_metadata()

    def write(self, row: Row) -> None:
        """Add a row."""
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_BATCH:
            self._flush()

    def content_hash(self) -> str:
        """Return the sha256 of the finished Arrow file."""
        with self._arrow_path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = [_lists([getattr(row, name) for row in self._rows]) for name in COLUMNS]
        self._stream.write_batch(pa.record_batch(columns, schema=_schema()))
        for row in self._rows:
            record = {name: getattr(row, name) for name in COLUMNS}
            self._jsonl.write(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
        self._rows = []

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


class PartReader:
    """Reads rows of a bucket from the memory-mapped Arrow file, by number.

    Raises:
        OSError: the file is not there.
        ValueError: it is not a whole Arrow file, or does not hold our columns.
    """

    def __init__(self, folder: Path) -> None:
        # The arrays outlive the open file: a corpus may have more parts than a process may open files.
        with pa.memory_map(str(folder / ARROW_FILE)) as source:
            reader = pa.ipc.open_stream(source)
            if not reader.schema.equals(_schema()):
                raise ValueError(f"its columns are not {', '.join(COLUMNS)} as lists of int32")
            batches = list(_batches(reader))
        self._columns = [
            tuple(_as_arrays(batch.column(batch.schema.get_field_index(c))) for c in COLUMNS) for batch in batches
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


def _lists(arrays: Iterable[npt.NDArray[np.int32]]) -> Any:
    arrays = list(arrays)
    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays)))


def _features() -> dict[str, Any]:
    return {name: {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"} for name in COLUMNS}


def _schema() -> Any:
    fields = [pa.field(name, pa.list_(pa.int32())) for name in COLUMNS]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": _features()}})})
