"""The journal of a run: every answer that was paid for, one line each, before anything is made of it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import iterate_lines, parse_record

VERSION = 1


@dataclass(frozen=True)
class Reply:
    """What the endpoint answered.

    Attributes:
        content: the text; empty where it said nothing.
        finish_reason: why it ended, as the endpoint says it: stop, length, content_filter ...
        refused: whether the endpoint itself marked the answer as a refusal.
        prompt_tokens: tokens it read, as it reports them; None where it does not.
        completion_tokens: tokens it wrote, likewise.
    """

    content: str
    finish_reason: str = "stop"
    refused: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class GaveUp:
    """A request that got no answer after all its tries, and is not sent again because others were built on that."""

    reason: str


class AnswerJournal:
    """Answers by the name of their request; written and flushed to the disk one by one.

    A name stands for one request alone: the digest of what was asked is kept with the answer.
    """

    def __init__(self, path: Path, file: IO[bytes], lines: Sequence[dict[str, Any]]) -> None:
        self.path = path
        self.failures: list[str] = []
        self.outputs: set[str] = set()
        self._file = file
        self._answers: dict[str, tuple[str, Reply | GaveUp]] = {}
        for number, line in enumerate(lines, 2):
            try:
                self._take(line)
            except (KeyError, TypeError):
                raise InputError("is no line of a journal", path=path, line=number, remedy=_anew(path)) from None

    def find(self, name: str, digest: str) -> Reply | GaveUp | None:
        """Return what came back when this was asked before.

        Raises:
            InputError: something else was asked under that name.
        """
        found = self._answers.get(name)
        if found is None:
            return None
        if found[0] != digest:
            raise InputError(f"holds another request as {name}", path=self.path, remedy=_anew(self.path))
        return found[1]

    def replies(self) -> Iterator[Reply]:
        """Yield all answers that are there."""
        return (reply for _, reply in self._answers.values() if isinstance(reply, Reply))

    def add(self, name: str, digest: str, result: Reply | GaveUp) -> None:
        """Keep an answer: when this returns it is on the disk."""
        kind = "reply" if isinstance(result, Reply) else "gave_up"
        self._write({"name": name, "digest": digest, kind: asdict(result)})

    def add_failure(self, name: str, reason: str) -> None:
        """Keep that a try failed."""
        self._write({"name": name, "failure": reason})

    def add_output(self, digest: str) -> None:
        """Keep the digest of an output before it takes its name: that is how a later run knows it as its own."""
        if digest not in self.outputs:
            self._write({"output": digest})

    def _write(self, line: dict[str, Any]) -> None:
        self._take(line)
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _take(self, line: dict[str, Any]) -> None:
        if "output" in line:
            self.outputs.add(line["output"])
        elif "failure" in line:
            self.failures.append(line["failure"])
        else:
            result = Reply(**line["reply"]) if "reply" in line else GaveUp(**line["gave_up"])
            self._answers[line["name"]] = (line["digest"], result)


@contextmanager
def open_journal(path: Path, made_by: Mapping[str, Any]) -> Iterator[AnswerJournal]:
    """Open a journal, or begin one; half a line at its end, left by a kill, is cut off and its request sent again.

    Args:
        path: the file.
        made_by: everything that decides what is asked; a journal of other settings is refused.

    Raises:
        InputError: another run has it open, it cannot be written, it is no journal, or one of other settings.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", path=path) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError("another run is writing it", path=path, remedy="wait for that, or end it") from None
        file.seek(0)
        whole = file.read()
        end = whole.rfind(b"\n") + 1
        file.truncate(end)
        lines = [parse_record(raw, path, number) for number, raw in iterate_lines(whole[:end].splitlines())]
        header = {"version": VERSION, "made_by": json.loads(json.dumps(made_by))}
        if lines:
            _refuse_other(lines[0], header, path)
        else:
            file.write(json.dumps(header).encode() + b"\n")
            file.flush()
        yield AnswerJournal(path, file, lines[1:])


def read_outputs(path: Path) -> set[str]:
    """Return the digests of the outputs that a journal tells of; none where there is no journal."""
    if not path.is_file():
        return set()
    whole = path.read_bytes()
    lines = whole[: whole.rfind(b"\n") + 1].splitlines()
    return {str(json.loads(line)["output"]) for line in lines if line.startswith(b'{"output":')}


def digest_of(body: Mapping[str, Any]) -> str:
    """Return a digest of what is asked."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]


def _refuse_other(found: dict[str, Any], header: dict[str, Any], path: Path) -> None:
    if found.get("version") != VERSION or not isinstance(found.get("made_by"), dict):
        raise InputError(f"is no journal of version {VERSION}", path=path, line=1, remedy=_anew(path))
    before, now = found["made_by"], header["made_by"]
    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if changed:
        what = f"was begun with another {', '.join(changed)}"
        raise InputError(what, path=path, remedy=f"give the same, or {_anew(path)}")


def _anew(path: Path) -> str:
    return f"choose another --output; removing {path.name} forgets answers that were paid for"
