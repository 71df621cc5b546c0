"""What a record of an alignment set says, whatever its layout: turns, and the answers that may come next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from colossal_llama2.errors import InputError

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; `role` is system, user or assistant, as chat templates call them."""

    role: str
    content: str


@dataclass(frozen=True)
class Answer:
    """An assistant's answer; `rank` 0 is the best one, and equal ranks are equally good."""

    content: str
    rank: int = 0


@dataclass(frozen=True)
class Example:
    """A conversation up to a point, and the answers given there.

    Attributes:
        turns: what was said before the answers.
        answers: none where nobody answers, one of an ordinary conversation, several where they are compared.
        labelled: whether the rank of a single answer was given: 0 a good one, 1 a bad one.
    """

    turns: tuple[Turn, ...]
    answers: tuple[Answer, ...] = ()
    labelled: bool = False

    @property
    def num_turns(self) -> int:
        """Turns, answers among them."""
        return len(self.turns) + len(self.answers)

    @property
    def key(self) -> int:
        """A number below 2**64 that depends on the turns before the answers alone.

        The same prompt has the same key in every file and layout, whatever the answers, so that what is divided by it
        never has one prompt on two sides.
        """
        spelled = json.dumps([[turn.role, turn.content] for turn in self.turns], ensure_ascii=False)
        return int.from_bytes(hashlib.sha256(spelled.encode()).digest()[:8], "big")

    def with_system(self, content: str) -> Example:
        """Return the example with a system turn at its head, unless it has one."""
        if not content or any(turn.role == SYSTEM for turn in self.turns[:1]):
            return self
        return replace(self, turns=(Turn(SYSTEM, content), *self.turns))


@dataclass(frozen=True)
class Place:
    """Where a record stands, for complaints."""

    path: Path
    line: int

    def complaint(self, what: str, remedy: str | None = None) -> InputError:
        """Return the error that names the place."""
        return InputError(what, path=self.path, line=self.line, remedy=remedy)


def best_conversation(example: Example) -> list[Turn]:
    """Return the turns with the best answer behind them; without answers, up to the last turn of the assistant."""
    if example.answers:
        best = min(example.answers, key=lambda answer: answer.rank)  # the first of several that are equally good
        return [*example.turns, Turn(ASSISTANT, best.content)]
    turns = list(example.turns)
    while turns and turns[-1].role != ASSISTANT:
        turns.pop()
    return turns


def cut_points(turns: Sequence[Turn]) -> list[int]:
    """Return how many turns a conversation has after each exchange: each place where the assistant has finished."""
    return [
        number
        for number, turn in enumerate(turns, 1)
        if turn.role == ASSISTANT and (number == len(turns) or turns[number].role != ASSISTANT)
    ]
