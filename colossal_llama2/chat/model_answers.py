"""What models write, read with patience: JSON inside prose or fences, numbered lists, a yes or no."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, Final, TypeVar

from colossal_llama2.chat.asking import MalformedError

Kind = TypeVar("Kind", dict[str, Any], list[Any])


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse)
_OPENINGS: Final = {dict: "{", list: "["}
_DIGITS: Final = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_MARKER: Final = re.compile(
    r"^(?P<indent>[ \t]*)(?:[*_]{2}|#{1,6} )?"  # Markdown around the number
    r"(?P<open>[(（【第]?)"
    r"(?P<number>\d{1,4}|[零〇一二两三四五六七八九十百]{1,5})"
    r"(?P<close>[条题]?[.)．、）】:：](?!\d)|[条题](?=\s))"
    r"(?:[*_]{2})?[ \t]*(?P<rest>.*)$"
)
_BULLET: Final = re.compile(r"^(?P<indent>[ \t]*)(?P<close>[-*•‣·])[ \t]+(?P<rest>.*)$")
_YES: Final = ("yes", "是", "true")
_NO: Final = ("no", "不是", "否", "不", "false")


def find_json(text: str, kind: type[Kind]) -> Kind:
    """Return the first JSON object, or array, that stands in a text, whatever is around it.

    Args:
        text: what the model wrote: bare JSON, JSON in a fence, or in the middle of sentences.
        kind: dict for an object, list for an array.

    Raises:
        MalformedError: there is none.
    """
    start = text.find(_OPENINGS[kind])
    while start >= 0:
        try:
            found, _ = _DECODER.raw_decode(text, start)
        except RecursionError:
            break  # a model that only opens brackets: every further one would take as long
        except ValueError:
            start = text.find(_OPENINGS[kind], start + 1)
            continue
        if isinstance(found, kind):
            return found
        break
    raise MalformedError("no_json")


def text_of(fields: dict[str, Any], name: str, may_be_empty: bool = False) -> str:
    """Return a text field of an object, blanks around it stripped.

    Raises:
        MalformedError: it is missing, no text, or says nothing.
    """
    value = fields.get(name)
    if value is None and may_be_empty:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise MalformedError(f"no_{name}")
    return checked_text(value, may_be_empty)


def checked_text(text: str, may_be_empty: bool = False) -> str:
    """Return a text without the blanks around it.

    Raises:
        MalformedError: it says nothing, or holds half a surrogate pair, which an escape in JSON can write.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise MalformedError("not_text")
    text = text.strip()
    if not text and not may_be_empty:
        raise MalformedError("empty")
    return text


def list_entries(text: str) -> list[str]:
    """Return the entries of a list: a JSON array of texts, or lines with numbers (Chinese ones too) or bullets.

    An entry goes on over the lines that follow it, until the next number or a blank line; lines after a blank one
    belong to it if they are indented. A list inside an entry stays inside: its numbers are not the next one. What
    stands before and behind the list is not read.

    Raises:
        MalformedError: there is no list, or an entry that is no text.
    """
    begins_as_json = text.removeprefix("```json").removeprefix("```").lstrip().startswith("[")
    entries = [] if begins_as_json else _marked_lines(text)
    if not entries:
        try:
            found = find_json(text, list)
        except MalformedError:
            raise MalformedError("no_list") from None
        if not found or not all(isinstance(entry, str) for entry in found):
            raise MalformedError("no_list")
        entries = found
    return [checked_text(entry) for entry in entries]


def yes_or_no(text: str) -> bool:
    """Tell whether an answer is yes; English or Chinese, whatever stands behind the word.

    Raises:
        MalformedError: it is neither.
    """
    first = unicodedata.normalize("NFKC", text).strip(" \t\r\n*\"'`“”「」。.").casefold()
    for words, meaning in ((_NO, False), (_YES, True)):  # 不是 before 是
        for word in words:
            if first.startswith(word) and not (word.isascii() and first[len(word) : len(word) + 1].isalnum()):
                return meaning
    raise MalformedError("neither_yes_nor_no")


def scores_of(text: str, count: int, lowest: float, highest: float) -> list[float]:
    """Return the judge's scores: ``{"scores": [...]}`` or the array alone.

    Raises:
        MalformedError: they are not there, not so many, or out of range.
    """
    try:
        scores = find_json(text, dict).get("scores")
    except MalformedError:
        scores = find_json(text, list)
    if not isinstance(scores, list) or len(scores) != count:
        raise MalformedError("wrong_number_of_scores")
    if any(isinstance(score, bool) or not isinstance(score, int | float) for score in scores):
        raise MalformedError("score_no_number")
    if any(not lowest <= score <= highest for score in scores):
        raise MalformedError("score_out_of_range")
    return [float(score) for score in scores]


def chinese_number(text: str) -> int:
    """Return the value of a number below 1000 in Arabic or Chinese digits: 7, ７, 七, 十二, 二十, 一百零三."""
    if text.isdigit():
        return int(text)
    total = unit = 0
    for character in text:
        if character in "十百":
            total += (unit or 1) * (10 if character == "十" else 100)
            unit = 0
        else:
            unit = _DIGITS[character]
    return total + unit


def _marked_lines(text: str) -> list[str]:
    entries: list[list[str]] = []
    first: re.Match[str] | None = None
    number, after_blank = 0, False
    for line in text.splitlines():
        marked = _MARKER.match(line) or _BULLET.match(line)
        if marked and (first is None or _goes_on(marked, first, number)):
            first = first or marked
            number = _number(marked)
            entries.append([marked["rest"]])
        elif entries and line.strip():
            if after_blank and not line[0].isspace():
                break
            entries[-1].append(line.strip())
        after_blank = not line.strip()
    return ["\n".join(lines).strip() for lines in entries]


def _goes_on(marked: re.Match[str], first: re.Match[str], number: int) -> bool:
    """Tell whether a marker is the next one of the list that the first one began, and not of a list inside an entry."""
    alike = marked.groupdict().get("open") == first.groupdict().get("open") and marked["close"] == first["close"]
    outside = len(marked["indent"]) <= len(first["indent"]) + 1  # one more: numbers are set flush right at times
    return alike and outside and _number(marked) == (number + 1 if marked.re is _MARKER else 0)


def _number(marked: re.Match[str]) -> int:
    return chinese_number(marked["number"]) if marked.re is _MARKER else 0
