"""Conversations in files: records that `tools/prepare_dataset.py` takes, and those of any set that it takes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from colossal_llama2.dataset.conversation import ASSISTANT, SYSTEM, USER, Answer, Place, Turn
from colossal_llama2.dataset.conversation_layouts import read_record, recognise
from colossal_llama2.dataset.streams import open_stream
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import iterate_lines, parse_record
from colossal_llama2.outputs import whole_file

_SPEAKERS: Final = {SYSTEM: "system", USER: "human", ASSISTANT: "assistant"}


def save_conversations(conversations: Mapping[str, Sequence[Turn]], path: Path, overwrite: bool = False) -> None:
    """Write conversations, one a line, each with the name of the model that held it.

    Raises:
        InputError: nothing was said in one of them, or the file exists and is not to be replaced.
    """
    lines = []
    for name, turns in conversations.items():
        if not any(turn.role == ASSISTANT for turn in turns):
            raise InputError(f"{name} has not answered anything yet", remedy="talk first")
        said = [{"from": _SPEAKERS[turn.role], "content": turn.content} for turn in turns]
        lines.append(json.dumps({"messages": said, "model": name}, ensure_ascii=False) + "\n")
    with whole_file(path, overwrite) as work:
        work.write_text("".join(lines), encoding="utf-8")


def load_conversations(path: Path) -> list[list[Turn]]:
    """Read the conversations of a file, in any layout of docs/datasets.md; of several answers the best one is taken.

    Raises:
        InputError: it cannot be read, or holds no conversation, or something else.
    """
    found = []
    with open_stream(path, "jsonl") as file:
        for line, raw in iterate_lines(io.BufferedReader(file)):  # type: ignore[type-var]  # it comes raw
            place = Place(path, line)
            fields = parse_record(raw, path, line)
            layout = recognise(fields)
            if layout is None:
                raise place.complaint("is no conversation", 'write {"messages": [{"from": "human", "content": "..."}]}')
            example = read_record(fields, layout, place).example
            best: list[Answer] = sorted(example.answers, key=lambda answer: answer.rank)[:1]
            found.append([*example.turns, *(Turn(ASSISTANT, answer.content) for answer in best)])
    if not found:
        raise InputError("holds no conversation", path=path, remedy="name a file that /save wrote")
    return found
