"""The layouts in which alignment sets are published, each to the same example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from colossal_llama2.dataset.conversation import ASSISTANT, SYSTEM, USER, Answer, Example, Place, Turn
from colossal_llama2.dataset.conversation_fields import (
    MESSAGE_LISTS,
    is_transcript,
    leftovers,
    message_leftovers,
    messages,
    optional_text,
    prompt_field,
    text_field,
    transcript,
)

Layout = Literal[
    "instruction", "completion", "messages", "human_assistant", "preference", "transcript", "responses", "prompt"
]
_PROMPTS: Final = ("prompt", "context", "user_input", *MESSAGE_LISTS)
_COMPLETIONS: Final = ("completion", "response")
_ANSWER_LISTS: Final = ("responses", "answers")


@dataclass(frozen=True)
class ReadRecord:
    """A record as an example, and the names of its fields that hold something and are not read."""

    example: Example
    passed_over: tuple[str, ...]


def recognise(fields: dict[str, Any]) -> Layout | None:
    """Tell a record's layout by the names of its fields; None where it is none of those known."""
    prompted = _first(fields, _PROMPTS) is not None
    if "chosen" in fields and "rejected" in fields:
        whole = not prompted and "instruction" not in fields and is_transcript(fields["chosen"])
        return "transcript" if whole else "preference"
    if _first(fields, _ANSWER_LISTS) is not None and (prompted or "instruction" in fields):
        return "responses"
    if _first(fields, MESSAGE_LISTS) is not None:
        return "messages"
    if "instruction" in fields and "output" in fields:
        return "instruction"
    if prompted:
        return "completion" if _first(fields, _COMPLETIONS) is not None else "prompt"
    return "human_assistant" if "human" in fields and "assistant" in fields else None


def read_record(fields: dict[str, Any], layout: Layout, place: Place) -> ReadRecord:
    """Read a record of a layout.

    Raises:
        InputError: it is not of that layout, or says nothing where something must be said.
    """
    found = recognise(fields)
    if found != layout:
        names = ", ".join(fields) or "none"
        what = f"is no {layout} record (its fields: {names})"
        raise place.complaint(what, f"pass --layout {found} if all are" if found else "see docs/datasets.md")
    example, used = _READERS[layout](fields, place)
    passed_over = leftovers(fields, used)
    for name in used:
        if isinstance(fields.get(name), list | dict) and name != "history":
            passed_over += [f"{name}.{field}" for field in message_leftovers(fields[name])]
    return ReadRecord(example, tuple(dict.fromkeys(passed_over)))


def _instruction(fields: dict[str, Any], place: Place) -> tuple[Example, list[str]]:
    turns = _instruction_turns(fields, place)
    answer = Answer(text_field(fields, "output", place))
    return Example(tuple(turns), (answer,)), ["instruction", "input", "output", "system", "history"]


def _instruction_turns(fields: dict[str, Any], place: Place) -> list[Turn]:
    turns = [*_system(fields, place), *_history(fields, place)]
    more = optional_text(fields, "input", place)
    instruction = text_field(fields, "instruction", place)
    return [*turns, Turn(USER, f"{instruction}\n\n{more}" if more.strip() else instruction)]


def _completion(fields: dict[str, Any], place: Place) -> tuple[Example, list[str]]:
    """Read a prompt with its answer; a ``label`` says whether the answer is a good one (as KTO wants it)."""
    name = _named(fields, _COMPLETIONS)
    turns, used, stripped = _prompt(fields, place)
    answer = _answer(fields[name], name, place, stripped)
    label = fields.get("label")
    if label is None:
        return Example(tuple(turns), (answer,)), [*used, name]
    if not isinstance(label, bool):
        raise place.complaint('"label" is neither true nor false', "say whether the answer is a good one")
    return Example(tuple(turns), (Answer(answer.content, 0 if label else 1),), labelled=True), [*used, name, "label"]


def _messages(fields: dict[str, Any], place: Place) -> tuple[Example, list[str]]:
    name = _named(fields, MESSAGE_LISTS)
    turns = [*_system(fields, place), *messages(fields[name], name, place)]
    return _ending_with_answer(turns), [name, "system"]


def _human_assistant(fields: dict[str, Any], place: Place) -> tuple[Example, list[str]]:
    turns = [*_system(fields, place), Turn(USER, text_field(fields, "human", place))]
    answer = Answer(text_field(fields, "assistant", place))
    return Example(tuple(turns), (answer,)), ["human", "assistant", "system"]


def _preference(fields: dict[str, Any], place: Place) -> tuple[Example, list[str]]:
    """Read a prompt with better and worse answers; each may be several, and a message list may repeat the prompt."""
    used = ["chosen", "rejected"]
    if "instruction" not in fields and _first(fields, _PROMPTS) is None:
        return _compared(
            messages(fields["chosen"], "chosen", place), messages(fields["rejected"], "rejected", place), place
        ), used
    turns, more, stripped = _prompt(fields, place)
    answers = []
    for rank, name in enumerate(used):
        value = fields[name]
        several = (
            value if isinstance(value, list) and value and all(isinstance(part, str) for part in value) else [value]
        )
        for part in several:
            answer = _answer(_without_prompt(part, turns, name, place), name, place, stripped)
            answers.append(Answer(answer.content, rank))
    return Example(tuple(turns), tuple(answers)), [*used, *more]


def _transcript(fields: dict[str, Any], place: Place) -> tuple[Example, list[str]]:
    for name in ("chosen", "rejected"):
        if not is_transcript(fields[name]):
            raise place.complaint(f'"{name}" is no transcript', r'begin it with "\n\nHuman: "')
    example = _compared(transcript(fields["chosen"], place), transcript(fields["rejected"], place), place)
    return example, ["chosen", "rejected"]


def _responses(fields: dict[str, Any], place: Place) -> tuple[Example, list[str]]:
    """Read a prompt with a list of answers, and ``ranks`` (low is good) or ``scores`` (high is good) of as many."""
    name = _named(fields, _ANSWER_LISTS)
    turns, used, stripped = _prompt(fields, place)
    values = fields[name]
    if not isinstance(values, list) or not values:
        raise place.complaint(f'"{name}" is not a list of answers', "give it a list")
    worth_name = "ranks" if "ranks" in fields else "scores"
    worth = fields.get(worth_name)
    numbers = isinstance(worth, list) and all(isinstance(w, int | float) and not isinstance(w, bool) for w in worth)
    if not isinstance(worth, list) or not numbers or len(worth) != len(values):
        raise place.complaint(f'"{worth_name}" is not one number for each of "{name}"', 'give "ranks" or "scores"')
    order = sorted(set(worth), reverse=worth_name == "scores")
    answers = [
        Answer(_answer(value, name, place, stripped).content, order.index(one))
        for value, one in zip(values, worth, strict=True)
    ]
    return Example(tuple(turns), tuple(answers)), [*used, name, worth_name]


def _prompt_alone(fields: dict[str, Any], place: Place) -> tuple[Example, list[str]]:
    turns, used, _ = _prompt(fields, place)
    return _ending_with_answer(turns), used


_READERS: Final[dict[Layout, Callable[[dict[str, Any], Place], tuple[Example, list[str]]]]] = {
    "instruction": _instruction,
    "completion": _completion,
    "messages": _messages,
    "human_assistant": _human_assistant,
    "preference": _preference,
    "transcript": _transcript,
    "responses": _responses,
    "prompt": _prompt_alone,
}


def _prompt(fields: dict[str, Any], place: Place) -> tuple[list[Turn], list[str], bool]:
    """Return the prompt's turns, the fields read, and whether it is a transcript, whose answers begin with a blank."""
    if "instruction" in fields:
        return _instruction_turns(fields, place), ["instruction", "input", "system", "history"], False
    name = _named(fields, _PROMPTS)
    turns = [*_system(fields, place), *prompt_field(fields, name, place)]
    return turns, [name, "system"], is_transcript(fields[name])


def _answer(value: Any, name: str, place: Place, stripped: bool) -> Answer:
    if isinstance(value, list | dict):
        turns = messages(value, name, place)
        if len(turns) != 1 or turns[0].role != ASSISTANT:
            raise place.complaint(
                f'"{name}" is not one message of the assistant', "put what comes before into the prompt"
            )
        return Answer(turns[0].content)
    text = text_field({name: value}, name, place)
    return Answer(text.strip() if stripped else text)


def _without_prompt(value: Any, prompt: list[Turn], name: str, place: Place) -> Any:
    """Take the prompt off a list of messages that repeats it."""
    if isinstance(value, list) and len(value) > len(prompt) and messages(value, name, place)[: len(prompt)] == prompt:
        return value[len(prompt) :]
    return value


def _compared(chosen: list[Turn], rejected: list[Turn], place: Place) -> Example:
    """Make an example of two whole conversations that differ in their last answer."""
    same = len(chosen) == len(rejected) and chosen[:-1] == rejected[:-1]
    if not same or len(chosen) < 2 or {chosen[-1].role, rejected[-1].role} != {ASSISTANT}:
        what = '"chosen" and "rejected" do not differ in their last answer alone'
        raise place.complaint(what, "remove the record")
    return Example(tuple(chosen[:-1]), (Answer(chosen[-1].content, 0), Answer(rejected[-1].content, 1)))


def _ending_with_answer(turns: list[Turn]) -> Example:
    if turns and turns[-1].role == ASSISTANT:
        return Example(tuple(turns[:-1]), (Answer(turns[-1].content),))
    return Example(tuple(turns))


def _system(fields: dict[str, Any], place: Place) -> list[Turn]:
    content = optional_text(fields, "system", place)
    return [Turn(SYSTEM, content)] if content.strip() else []


def _history(fields: dict[str, Any], place: Place) -> list[Turn]:
    """Read the exchanges before an instruction: a list of [question, answer]."""
    turns: list[Turn] = []
    pairs = fields.get("history") or []
    for number, pair in enumerate(pairs if isinstance(pairs, list) else [pairs], 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise place.complaint(f'entry {number} of "history" is no pair of texts', "write [question, answer]")
        question, answer = (text_field({"history": part}, "history", place) for part in pair)
        turns += [Turn(USER, question), Turn(ASSISTANT, answer)]
    return turns


def _first(fields: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in fields), None)


def _named(fields: dict[str, Any], names: tuple[str, ...]) -> str:
    name = _first(fields, names)
    assert name is not None
    return name
