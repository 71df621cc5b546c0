"""JSON Lines in: one object a line, and a complaint that names file and line for everything else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from colossal_llama2.errors import InputError

_BOM = b"\xef\xbb\xbf"


class Columns(Protocol):
    """Where what was parsed stands in the line, if a part of the line is missing from it; columns count from 1."""

    def byte_column(self, column: int) -> int:
        """Return a byte's column."""
        ...

    def character_column(self, column: int) -> int:
        """Return a character's column."""
        ...


def parse_record(raw: bytes, path: Path, line: int, columns: Columns | None = None) -> dict[str, Any]:
    """Turn one line into a JSON object.

    Args:
        raw: the line's bytes, with or without its line ending.
        path: the file it stands in, for the complaint.
        line: its number, counted from 1.
        columns: translates columns for the complaint, where `raw` is not the whole line.

    Raises:
        InputError: not UTF-8, not JSON, not an object, a name that stands twice, NaN or an infinity, or half a
            surrogate pair, which no tokenizer can encode.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        column = error.start + 1 if columns is None else columns.byte_column(error.start + 1)
        raise InputError(
            f"not UTF-8 (byte 0x{raw[error.start]:02x} at column {column})",
            path=path,
            line=line,
            remedy="convert the file to UTF-8",
        ) from None
    try:
        record = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        column = error.colno if columns is None else columns.character_column(error.colno)
        what = error.msg.rstrip(": ").removesuffix(" at")
        raise InputError(
            f"not JSON ({what} at column {column})",
            path=path,
            line=line,
            remedy="each line must hold one complete JSON object",
        ) from None
    except RecursionError:
        raise InputError("JSON nested too deeply", path=path, line=line) from None
    except ValueError as error:
        raise InputError(str(error), path=path, line=line, remedy="correct the record") from None
    if not isinstance(record, dict):
        raise InputError(
            f"holds a JSON {type(record).__name__}, not an object",
            path=path,
            line=line,
            remedy="write one object a line, without brackets around the lines",
        )
    if "\\u" in text or "\\U" in text:  # a surrogate can only enter through an escape
        _refuse_lone_surrogates(record, path, line)
    return record


def iterate_lines(lines: Iterable[bytes], first_line: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, stripped bytes) of every line that is not blank; drops a BOM at the start of a file."""
    for number, raw in enumerate(lines, first_line):
        if number == 1 and raw.startswith(_BOM):
            raw = raw[len(_BOM) :]
        raw = raw.strip(b" \t\r\n")
        if raw:
            yield number, raw


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, record) of a jsonl file, skipping blank lines.

    Accepts UTF-8 with or without a byte order mark, LF or CRLF, with or without a final line ending.

    Raises:
        InputError: the file cannot be read, or a line is not a record.
    """
    try:
        with path.open("rb") as file:
            for line, raw in iterate_lines(file):
                yield line, parse_record(raw, path, line)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None


def string_field(record: dict[str, Any], name: str, path: Path, line: int, default: str | None = None) -> str:
    """Return a record's text field.

    Raises:
        InputError: the field is missing and has no default, or is not a string.
    """
    value = record.get(name, default)
    if value is None:
        if name in record:
            raise InputError(f'"{name}" is null', path=path, line=line, remedy="give it a string")
        raise InputError(f'no "{name}" in the record', path=path, line=line, remedy=f'add "{name}": "..."')
    if not isinstance(value, str):
        raise InputError(f'"{name}" is a JSON {type(value).__name__}', path=path, line=line, remedy="give it a string")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {json.dumps(twice)} stands twice in one record")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _refuse_lone_surrogates(value: Any, path: Path, line: int) -> None:
    for text in _strings(value):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"half a surrogate pair (\\u{ord(text[error.start]):04x}) is not a character",
                path=path,
                line=line,
                remedy="repair or remove it",
            ) from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _strings(item)
