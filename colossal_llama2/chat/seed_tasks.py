"""Seeds to begin with: tasks that people wrote, or prompts, in any of the layouts that sets have; and lines of text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama2.dataset.conversation import USER, Example, Place
from colossal_llama2.dataset.conversation_layouts import read_record, recognise
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import read_jsonl, string_field


@dataclass(frozen=True)
class SeedTask:
    """A task: what is to be done, and what is done it with, if the seed says so."""

    instruction: str
    input: str = ""
    output: str = ""


def read_seeds(path: Path) -> list[SeedTask]:
    """Return the tasks of a jsonl file.

    A record has an ``instruction``, with ``input`` and ``output`` beside it or in the first of ``instances`` as
    self-instruct's own seeds; or it is of a layout of docs/datasets.md, and its first user turn is the task.

    Raises:
        InputError: the file holds none, or a record that is no task.
    """
    seeds = [_seed(record, path, line) for line, record in read_jsonl(path)]
    if not seeds:
        raise InputError("holds no record", path=path, remedy="write a task a line")
    return seeds


def read_examples(path: Path) -> list[tuple[int, Example]]:
    """Return (line number, example) of every record of a jsonl file, whatever its layout.

    Raises:
        InputError: the file holds none, or a line that is no record of a known layout.
    """
    examples = [(line, _example(record, path, line)) for line, record in read_jsonl(path)]
    if not examples:
        raise InputError("holds no record", path=path, remedy="write a prompt a line")
    return examples


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that say something.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or says nothing.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8", path=path, remedy="convert the file to UTF-8") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError("says nothing", path=path, remedy="write one a line")
    return lines


def _seed(record: dict[str, Any], path: Path, line: int) -> SeedTask:
    if "instruction" not in record:
        first = next((turn for turn in _example(record, path, line).turns if turn.role == USER), None)
        if first is None:
            raise InputError("no user says anything", path=path, line=line)
        return SeedTask(first.content)
    instances = record.get("instances")
    first_instance = instances[0] if isinstance(instances, list) and instances else record
    if not isinstance(first_instance, dict):
        raise InputError('the first of "instances" is no object', path=path, line=line)
    instruction = string_field(record, "instruction", path, line).strip()
    if not instruction:
        raise InputError('"instruction" says nothing', path=path, line=line)
    more, output = (string_field(first_instance, name, path, line, "") for name in ("input", "output"))
    return SeedTask(instruction, more.strip(), output.strip())


def _example(record: dict[str, Any], path: Path, line: int) -> Example:
    layout = recognise(record)
    if layout is None:
        raise InputError("is a record of no layout that is known", path=path, line=line, remedy="see docs/datasets.md")
    return read_record(record, layout, Place(path, line)).example
