"""Fields of records to turns: strings, lists of messages, transcripts; and a complaint for everything else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from colossal_llama2.dataset.conversation import ASSISTANT, SYSTEM, USER, Place, Turn

MESSAGE_LISTS: Final = ("messages", "conversations")
_ROLE_NAMES: Final = ("role", "from")
_CONTENT_NAMES: Final = ("content", "value")
_ROLES: Final = {
    "system": SYSTEM,
    "human": USER,
    "user": USER,
    "prompter": USER,
    "assistant": ASSISTANT,
    "gpt": ASSISTANT,
    "bot": ASSISTANT,
    "model": ASSISTANT,
    "chatgpt": ASSISTANT,
}
_SPEAKER: Final = re.compile(r"\n\n(Human|Assistant):")


def text_field(fields: dict[str, Any], name: str, place: Place) -> str:
    """Return a field that must say something.

    Raises:
        InputError: it is missing, no string, or blank.
    """
    return _said(fields.get(name), f'"{name}"', place)


def optional_text(fields: dict[str, Any], name: str, place: Place) -> str:
    """Return a field that may be missing, null or empty.

    Raises:
        InputError: it is something else than a string.
    """
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise place.complaint(f'"{name}" is a JSON {type(value).__name__}', "give it a string")
    return value


def messages(value: Any, name: str, place: Place) -> list[Turn]:
    """Turn a list of messages into turns; an empty system message counts as none.

    Raises:
        InputError: not a list of messages, a role nobody has, or a message that says nothing.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise place.complaint(f'"{name}" is not a list of messages', 'write [{"role": "user", "content": "..."}, ...]')
    turns = []
    for number, entry in enumerate(value, 1):
        what = f'message {number} of "{name}"'
        if not isinstance(entry, dict):
            raise place.complaint(f"{what} is a JSON {type(entry).__name__}", 'write {"role": ..., "content": ...}')
        turn = _message(entry, what, place)
        if turn.content or turn.role != SYSTEM:
            turns.append(turn)
    return turns


def message_leftovers(value: Any) -> list[str]:
    """Name the fields of messages that are not read and hold something."""
    entries = value if isinstance(value, list) else [value]
    known = (*_ROLE_NAMES, *_CONTENT_NAMES)
    return [
        name
        for entry in entries
        if isinstance(entry, dict)
        for name in entry
        if name not in known and _holds(entry[name])
    ]


def leftovers(fields: dict[str, Any], used: Sequence[str]) -> list[str]:
    """Name the fields of a record that are not read and hold something."""
    return [name for name, value in fields.items() if name not in used and _holds(value)]


def is_transcript(value: Any) -> bool:
    """Tell whether a text is written as the hh-rlhf sets write conversations: blank line, ``Human:``, what is said."""
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def transcript(text: str, place: Place) -> list[Turn]:
    r"""Split ``\n\nHuman: ...\n\nAssistant: ...`` into turns, blanks around each stripped.

    A last ``Assistant:`` that says nothing is the place where the answer comes, and no turn.

    Raises:
        InputError: a turn before the last says nothing.
    """
    parts = _SPEAKER.split(text)
    turns = [
        Turn(USER if speaker == "Human" else ASSISTANT, said.strip())
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if turns and turns[-1].role == ASSISTANT and not turns[-1].content:
        turns.pop()
    for number, turn in enumerate(turns, 1):
        if not turn.content:
            raise place.complaint(f"turn {number} of the transcript says nothing", "remove the record")
    return turns


def prompt_field(fields: dict[str, Any], name: str, place: Place) -> list[Turn]:
    """Turn a prompt into turns, be it a text, a transcript or a list of messages."""
    value = fields.get(name)
    if isinstance(value, list | dict):
        return messages(value, name, place)
    text = text_field(fields, name, place)
    return transcript(text, place) if is_transcript(text) else [Turn(USER, text)]


def _message(entry: dict[str, Any], what: str, place: Place) -> Turn:
    role_name = next((name for name in _ROLE_NAMES if name in entry), _ROLE_NAMES[0])
    role = entry.get(role_name)
    if not isinstance(role, str) or role.lower() not in _ROLES:
        known = ", ".join(_ROLES)
        raise place.complaint(f"{what} is from {role!r}, which is no known role", f'give "{role_name}" one of {known}')
    for name in ("tool_calls", "function_call"):
        if entry.get(name):
            raise place.complaint(f"{what} calls tools, which is not read", "remove the record")
    content_name = next((name for name in _CONTENT_NAMES if name in entry), _CONTENT_NAMES[0])
    content = entry.get(content_name)
    if _ROLES[role.lower()] == SYSTEM and content in (None, ""):
        return Turn(SYSTEM, "")
    return Turn(_ROLES[role.lower()], _said(content, f'"{content_name}" of {what}', place))


def _said(value: Any, what: str, place: Place) -> str:
    if value is None:
        raise place.complaint(f"{what} is missing", "give it a string")
    if not isinstance(value, str):
        raise place.complaint(f"{what} is a JSON {type(value).__name__}", "give it a string")
    if not value.strip():
        raise place.complaint(f"{what} says nothing", "remove the record")
    return value


def _holds(value: Any) -> bool:
    return value not in (None, "", [], {})
