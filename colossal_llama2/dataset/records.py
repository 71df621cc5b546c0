"""A pretraining record: text that is seen (source), text that is learned (target), and the sub-dataset it is from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import parse_record, string_field

DEFAULT_CATEGORY = "unknown"


@dataclass(frozen=True)
class Record:
    """One document of a pretraining corpus."""

    source: str
    target: str
    category: str


def parse_pretraining_record(raw: bytes, path: Path, line: int) -> Record:
    """Turn one line of jsonl into a record; ``source`` and ``category`` may be missing.

    Raises:
        InputError: not a record, or one whose ``target`` is missing or empty, which has nothing to learn.
    """
    fields = parse_record(raw, path, line)
    target = string_field(fields, "target", path, line)
    if not target:
        raise InputError(
            '"target" is empty, so there is nothing to learn', path=path, line=line, remedy="remove the record"
        )
    source = string_field(fields, "source", path, line, default="")
    category = string_field(fields, "category", path, line, default=DEFAULT_CATEGORY)
    return Record(source, target, category or DEFAULT_CATEGORY)
