"""Reads a corpus with the standard library and pyarrow alone: no line of it is shared with what it is compared with.

What a record is was written down anew from docs/formats.md. Only records of source, target, category and of text are
read, with the fields named as they are by default.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

KINDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".arrow")
_BOM = b"\xef\xbb\xbf"


class NoRecordError(ValueError):
    """A line or row that is no record."""


@dataclass
class Found:
    """What a file holds.

    Attributes:
        texts: source and target of each record as one text.
        categories: the category of each.
        refused: numbers of the lines or rows that are no records, from 1.
    """

    texts: list[str] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)


def read_file(path: Path) -> Found:
    """Read a file of any kind that a corpus may have."""
    found = Found()
    entries: Iterator[Any] = _rows(path) if path.suffix in (".parquet", ".arrow") else _lines(path)
    for number, entry in enumerate(entries, 1):
        try:
            fields = entry if isinstance(entry, dict) else _parse(entry)
            if fields is not None:
                text, category = _record(fields)
                found.texts.append(text)
                found.categories.append(category)
        except NoRecordError:
            found.refused.append(number)
    return found


def _lines(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    elif path.suffix == ".zst":
        with pa.input_stream(pa.BufferReader(content), compression="zstd") as stream:
            content = stream.read()
    yield from content.removeprefix(_BOM).split(b"\n")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield rows; a null stands for a field that the record does not have."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
    else:
        with pa.memory_map(str(path)) as source:
            try:
                table = pa.ipc.open_file(source).read_all()
            except pa.ArrowInvalid:
                source.seek(0)
                table = pa.ipc.open_stream(source).read_all()
    for row in table.to_pylist():
        yield {name: value for name, value in row.items() if value is not None}


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a line's object; None of a blank line."""
    if not line.strip(b" \t\r\n"):
        return None
    try:
        fields = json.loads(line.decode("utf-8"), object_pairs_hook=_once_each, parse_constant=_refuse)
        json.dumps(fields, ensure_ascii=False).encode("utf-8")  # half a surrogate pair cannot be written
    except ValueError as error:  # also what decode, encode and json raise
        raise NoRecordError(str(error)) from None
    if not isinstance(fields, dict):
        raise NoRecordError("not an object")
    return fields


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise NoRecordError("a name twice")
    return dict(pairs)


def _refuse(constant: str) -> Any:
    raise NoRecordError(constant)


def _record(fields: dict[str, Any]) -> tuple[str, str]:
    source: Any = fields.get("source", "")
    if "text" in fields:
        if "target" in fields or source != "":
            raise NoRecordError("two fields could be learned")
        target: Any = fields["text"]
    else:
        target = fields.get("target")
    category: Any = fields.get("category", "unknown")
    if not (isinstance(source, str) and isinstance(target, str) and target and isinstance(category, str)):
        raise NoRecordError("not texts, or nothing to learn")
    return source + target, category or "unknown"
