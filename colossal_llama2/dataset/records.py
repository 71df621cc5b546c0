"""A pretraining record: text that is seen (source), text that is learned (target), and the sub-dataset it is from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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


def record_of(fields: dict[str, Any], path: Path, line: int, reading: Reading) -> Record:
    """Choose a record's texts and category from its fields.

    Raises:
        InputError: see `parse_pretraining_record`.
    """

    source_name, target_name = chosen_fields(fields, reading, path, line)
    target = string_field(fields, target_name, path, line)
    if not target:
        what = f'"{target_name}" is empty, so there is nothing to learn'
        raise InputError(what, path=path, line=line, remedy="remove the record")
    source = string_field(fields, source_name, path, line, default="") if source_name else ""
    if reading.category_from != "field":
        return Record(source, target, "")
    category = string_field(fields, reading.category_field, path, line, default=reading.default_category)
    return Record(source, target, category or reading.default_category)


def chosen_fields(
    fields: Mapping[str, Any], reading: Reading, path: Path, line: int | None, what: str = "record"
) -> tuple[str | None, str]:
    """Return the names of the source's field, if there may be one, and of the target's.

    Args:
        fields: the record, or the columns of a table with any value that is not "".
        reading: what the user named.
        path: for the complaint.
        line: for the complaint.
        what: whose fields they are, for the complaint.

    Raises:
        InputError: more than one field could be meant.
    """
    if reading.text_field is not None:
        return None, reading.text_field
    source, target = reading.source_field or SOURCE, reading.target_field or TARGET
    if reading.target_field is not None or TEXT not in fields:
        return source, target
    if target in fields:
        raise InputError(
            f'both "{target}" and "{TEXT}" in the {what}',
            path=path,
            line=line,
            remedy=f"say which is learned: --target_field {target} or --text_field {TEXT}",
        )
    if fields.get(source, "") != "":
        raise InputError(
            f'"{source}" and "{TEXT}" in the {what}, but no "{target}"',
            path=path,
            line=line,
            remedy=f"say what is learned: --text_field {TEXT} alone, or --source_field {source} --target_field {TEXT}",
        )
    return None, TEXT


def quick_chooser(
    reading: Reading, category_of_file: str | None
) -> Callable[[dict[str, Any]], tuple[str, str, str] | None]:
    """Give a function that does for most records what `record_of` does for all, and for others returns None.

    It is called once a document, so that what can be decided beforehand is.

    Args:
        reading: what the user named.
        category_of_file: the category of every record, where the file's name decides it.
    """
    by_text = reading.text_field
    source_name, target_name = reading.source_field or SOURCE, reading.target_field or TARGET
    either = reading.target_field is None
    category_name, default = reading.category_field, reading.default_category

    def choose(fields: dict[str, Any]) -> tuple[str, str, str] | None:
        if by_text is not None:
            source, target = "", fields.get(by_text)
        elif either and TEXT in fields:
            if target_name in fields or fields.get(source_name, "") != "":
                return None
            source, target = "", fields[TEXT]
        else:
            source, target = fields.get(source_name, ""), fields.get(target_name)
        category = fields.get(category_name, default) if category_of_file is None else category_of_file
        if type(target) is str and target and type(source) is str and type(category) is str:
            return source, target, category or default
        return None

    return choose


@dataclass
class RecordBatch:
    """Documents, in order; together about two million characters, or one document that has more.

    Attributes:
        texts: source and target of each, as one string.
        source_characters: how many of its characters are the source.
        categories: the sub-dataset of each.
    """

    texts: list[str] = field(default_factory=list)
    source_characters: list[int] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)

    def extend(self, other: RecordBatch) -> None:
        """Put another batch's documents behind these."""
        self.texts += other.texts
        self.source_characters += other.source_characters
        self.categories += other.categories


@dataclass(frozen=True)
class GiantText:
    """A text that is not held.

    Attributes:
        characters: how many it has.
        chunks: gives its parts, in order.
    """

    characters: int
    chunks: Callable[[], Iterator[str]]


@dataclass(frozen=True)
class GiantRecord:
    """A document too large to be held: its texts come in chunks of about a million characters, any number of times."""

    source: GiantText
    target: GiantText
    category: str

    def source_chunks(self) -> Iterator[str]:
        """Yield the source from its beginning; nothing where there is none."""
        return self.source.chunks()

    def target_chunks(self) -> Iterator[str]:
        """Yield the target from its beginning."""
        return self.target.chunks()
