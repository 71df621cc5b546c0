"""A pretraining record: text that is seen (source), text that is learned (target), and the sub-dataset it is from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from colossal_llama2.dataset.inputs import InputFile
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import parse_record, string_field

DEFAULT_CATEGORY = "unknown"
SOURCE, TARGET, TEXT, CATEGORY = "source", "target", "text", "category"


@dataclass(frozen=True)
class Reading:
    """What is a record: decides, with a file's bytes and name, which documents come out of it.

    A field that is None was not named by the user: then ``target`` (after ``source``) is learned, or ``text`` alone
    where there is no target, and a record in which both could be meant is refused.

    Attributes:
        skip_bad_records: pass over what is not a record and list it, instead of stopping.
        text_field: the field that is learned whole, with no source before it; the others are not looked at.
        source_field: the field that is seen before the target.
        target_field: the field that is learned; ``text`` is not looked at then.
        category_field: the field that names the sub-dataset.
        category_from: where the category comes from: the record's field, the file's name, or its folder's name.
        default_category: the category of a record that names none.
    """

    skip_bad_records: bool = False
    text_field: str | None = None
    source_field: str | None = None
    target_field: str | None = None
    category_field: str = CATEGORY
    category_from: Literal["field", "file", "folder"] = "field"
    default_category: str = DEFAULT_CATEGORY

    def category_of(self, file: InputFile) -> str | None:
        """Return the category that a file's name decides, or None where the record's field does."""
        if self.category_from == "field":
            return None
        folder, _, name = file.name.rpartition("/")
        if self.category_from == "folder":
            return folder or file.path.absolute().parent.name or self.default_category
        stem = name.removesuffix(f".{file.kind}")
        return f"{folder}/{stem}" if folder else stem


@dataclass(frozen=True)
class Record:
    """One document of a pretraining corpus."""

    source: str
    target: str
    category: str


@dataclass(frozen=True)
class Refusal:
    """What is not a record, and why; `line` is the line of the file, of parquet and Arrow its row, from 1."""

    file: str
    line: int
    reason: str


def parse_pretraining_record(raw: bytes, path: Path, line: int, reading: Reading = Reading()) -> Record:
    """Turn one line of jsonl into a record; source and category may be missing.

    The slow and exact way: it knows why something is not a record.

    Raises:
        InputError: not a record, or one whose target is missing or empty, which has nothing to learn.
    """
    return record_of(parse_record(raw, path, line), path, line, reading)


def record_of(fields: Mapping[str, Any], path: Path, line: int, reading: Reading) -> Record:
    """Choose a record's texts and category from its fields.

    Raises:
        InputError: see `parse_pretraining_record`.
    """

    def text(name: str, default: str | None = None) -> str:
        return string_field(dict(fields), name, path, line, default)

    source_name, target_name = chosen_fields(fields, reading, lambda what, remedy: _refuse(what, remedy, path, line))
    target = text(target_name)
    if not target:
        _refuse(f'"{target_name}" is empty, so there is nothing to learn', "remove the record", path, line)
    source = text(source_name, "") if source_name else ""
    if reading.category_from != "field":
        return Record(source, target, "")
    category = text(reading.category_field, reading.default_category)
    return Record(source, target, category or reading.default_category)


def chosen_fields(
    fields: Mapping[str, Any], reading: Reading, refuse: Callable[[str, str], None]
) -> tuple[str | None, str]:
    """Return the names of the source's field, if there may be one, and of the target's.

    Args:
        fields: the record, or the columns of a table.
        reading: what the user named.
        refuse: is told what is ambiguous, and the remedy.
    """
    if reading.text_field is not None:
        return None, reading.text_field
    source, target = reading.source_field or SOURCE, reading.target_field or TARGET
    if reading.target_field is None and TEXT in fields:
        if target in fields:
            refuse(
                f'both "{target}" and "{TEXT}" in the record',
                f"say which is learned: --target_field {target} or --text_field {TEXT}",
            )
        elif fields.get(source, "") != "":
            refuse(
                f'"{source}" and "{TEXT}" in the record, but no "{target}"',
                f"say what is learned: --text_field {TEXT} alone, or --source_field {source} --target_field {TEXT}",
            )
        else:
            return None, TEXT
    return source, target


def _refuse(what: str, remedy: str, path: Path, line: int) -> None:
    raise InputError(what, path=path, line=line, remedy=remedy)
