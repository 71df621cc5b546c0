"""Parts of a prepared set on disk: rows of lists of int32 and of texts, the same bytes for the same rows.

The columns of an SFT set, and its bytes, are those of a corpus (`parts`), which is what training reads. A preference is
one row: the answers, each with the prompt ahead of it, behind one another as in a packed row, with the rank of each. A
prompt is one row: its ids, its text, and the record it was read from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from colossal_llama2.dataset.parts import ARROW_FILE, COLUMNS, part_name

Kind = Literal["int32", "string"]
SFT_COLUMNS: Final[dict[str, Kind]] = dict.fromkeys(COLUMNS, "int32")
PREFERENCE_COLUMNS: Final[dict[str, Kind]] = {**SFT_COLUMNS, "ranks": "int32"}
PROMPT_COLUMNS: Final[dict[str, Kind]] = {"prompt_ids": "int32", "text": "string", "record": "string"}
SET_COLUMNS: Final[dict[str, dict[str, Kind]]] = {
    "sft": SFT_COLUMNS,
    "preference": PREFERENCE_COLUMNS,
    "prompt": PROMPT_COLUMNS,
}
_ROWS_PER_BATCH: Final = 256


class SetWriter:
    """Writes one part row by row, holding a few hundred rows at a time.

    Args:
        set_dir: the set's folder.
        part: the part's number.
        columns: name and kind of each column; ``int32`` is a list of them.
    """

    def __init__(self, set_dir: Path, part: int, columns: dict[str, Kind]) -> None:
        self._columns, self._folder = columns, set_dir / part_name(part)
        self._folder.mkdir()
        self._schema = _schema(columns)
        self._stream = pa.ipc.new_stream(str(self._folder / ARROW_FILE), self._schema)
        self._rows: list[Sequence[Any]] = []

    def __enter__(self) -> SetWriter:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the files."""
        self._flush()
        self._stream.close()
        if kind is None:
            self._write_metadata()

    def write(self, *values: Any) -> None:
        """Add a row: a value a column, in their order."""
        self._rows.append(values)
        if len(self._rows) == _ROWS_PER_BATCH:
            self._flush()

    def content_hash(self) -> str:
        """Return the sha256 of the finished Arrow file."""
        with (self._folder / ARROW_FILE).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = [
            pa.array(values, pa.string()) if kind == "string" else _lists(values)
            for kind, values in zip(self._columns.values(), zip(*self._rows, strict=True), strict=True)
        ]
        self._stream.write_batch(pa.record_batch(columns, schema=self._schema))
        self._rows = []

    def _write_metadata(self) -> None:
        features = _features(self._columns)
        info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
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


def _lists(arrays: Sequence[Any]) -> Any:
    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays).astype(np.int32, copy=False)))


def _features(columns: dict[str, Kind]) -> dict[str, Any]:
    value: dict[str, Any] = {
        "int32": {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"},
        "string": {"dtype": "string", "_type": "Value"},
    }
    return {name: value[kind] for name, kind in columns.items()}


def _schema(columns: dict[str, Kind]) -> Any:
    kinds = {"int32": pa.list_(pa.int32()), "string": pa.string()}
    metadata = {"huggingface": json.dumps({"info": {"features": _features(columns)}})}
    return pa.schema([pa.field(name, kinds[kind]) for name, kind in columns.items()], metadata=metadata)
