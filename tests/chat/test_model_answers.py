"""What models write is read whatever stands around it, and never as something else."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.chat.asking import MalformedError
from colossal_llama2.chat.model_answers import (
    checked_text,
    chinese_number,
    find_json,
    list_entries,
    scores_of,
    text_of,
    yes_or_no,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PROSE = st.text(max_size=40).map(lambda text: text.translate(dict.fromkeys(map(ord, "{}[]"))))
WORDS = st.text("abc 中文，one?!(x)", min_size=1, max_size=30).map(str.strip).filter(lambda text: text[:1].isalpha())
HAN = "零一二三四五六七八九"


def han(number: int) -> str:
    """Write a number below 100 in Chinese, independently of the reader."""
    tens, ones = divmod(number, 10)
    return ("" if tens == 0 else "十" if tens == 1 else HAN[tens] + "十") + (HAN[ones] if ones else "")


STYLES = {
    "1.": lambda n: f"{n}. ",
    "1)": lambda n: f"{n}) ",
    "(1)": lambda n: f"({n}) ",
    "1、": lambda n: f"{n}、",
    "full width": lambda n: f"{''.join(chr(0xFEE0 + ord(d)) for d in str(n))}．",
    "一、": lambda n: f"{han(n)}、",
    "（一）": lambda n: f"（{han(n)}）",
    "第一条：": lambda n: f"第{han(n)}条：",
    "bold": lambda n: f"**{n}.** ",
    "heading": lambda n: f"### {n}. ",
    "bullet": lambda n: "- ",
    "dot": lambda n: "• ",
}


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=4), PROSE, PROSE, st.sampled_from(["", "```", "```json"]))
def test_json_is_found_in_fences_and_sentences(value: dict[str, object], before: str, after: str, fence: str) -> None:
    closing = "\n```\n" if fence else ""
    spelled = json.dumps(value, ensure_ascii=len(before) % 2 == 0, indent=len(after) % 3)
    text = f"{before}\n{fence}\n{spelled}{closing}{after}"
    assert find_json(text, dict) == value


def test_braces_before_the_object_do_not_matter() -> None:
    assert find_json('Fill {this} and {"a": NaN}: {"a": 1} {"a": 2}', dict) == {"a": 1}


@pytest.mark.parametrize("text", ["", "{", '{"a": }', "{" * 5000, "[" * 5000, '{"a": Infinity}', "no"])
def test_no_json(text: str) -> None:
    with pytest.raises(MalformedError, match="no_json"):
        find_json(text, dict)
    with pytest.raises(MalformedError, match="no_json"):
        find_json(text, list)


@settings(deadline=None)
@given(st.text(max_size=300))
def test_no_text_breaks_a_reader(text: str) -> None:
    for read in (list_entries, yes_or_no, lambda text: find_json(text, dict), lambda text: scores_of(text, 2, 1, 10)):
        with contextlib.suppress(MalformedError):
            assert isinstance(read(text), list | bool | dict)


@settings(deadline=None)
@given(
    st.lists(WORDS, min_size=1, max_size=25),
    st.sampled_from(sorted(STYLES)),
    st.booleans(),
    st.booleans(),
    st.integers(1, 9),
)
def test_lists_in_every_style(entries: list[str], style: str, framed: bool, spaced: bool, first: int) -> None:
    between = "\n\n" if spaced else "\n"
    text = between.join(STYLES[style](number) + entry for number, entry in enumerate(entries, first))
    if framed:
        text = f"Of course! Here they are:\n\n{text}\n\nTell me if you want others."
    assert list_entries(text) == entries


@settings(deadline=None)
@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=9))
def test_lists_as_json(entries: list[str]) -> None:
    for text in (json.dumps(entries, indent=2), f"```json\n{json.dumps(entries)}\n```", f"Here: {json.dumps(entries)}"):
        if not text.startswith("Here"):
            assert list_entries(text) == [entry.strip() for entry in entries]
    assert list_entries("Here: " + json.dumps(["a", "b"])) == ["a", "b"]


def test_lists_inside_entries_stay_inside() -> None:
    text = (
        "1. Sort these:\n   1. pears\n   2. plums\n   - figs\n2. Add 3.5 and\n4.5 of [3, 1]\n\n   It is for a friend.\n"
        " 3. End"
    )
    assert list_entries(text) == [
        "Sort these:\n1. pears\n2. plums\n- figs",
        "Add 3.5 and\n4.5 of [3, 1]\nIt is for a friend.",
        "End",
    ]
    assert list_entries("1) Sort these:\n1. pears\n2. plums\n2) End") == ["Sort these:\n1. pears\n2. plums", "End"]


@pytest.mark.parametrize(
    "text", ["", "Sorry, I cannot do that.", "[]", "[1, 2]", '{"a": ["x"]}x'[:6], "3.5 is a number"]
)
def test_no_list(text: str) -> None:
    with pytest.raises(MalformedError, match="no_list"):
        list_entries(text)


def test_entries_that_say_nothing_are_no_list() -> None:
    with pytest.raises(MalformedError, match="empty"):
        list_entries('["a", " "]')
    with pytest.raises(MalformedError, match="not_text"):
        list_entries('["a", "\\ud800"]')


@pytest.mark.parametrize("number", range(1, 100))
def test_chinese_numbers(number: int) -> None:
    assert chinese_number(han(number)) == number
    assert chinese_number(str(number)) == number
    assert chinese_number(f"一百零{HAN[number % 10]}") == 100 + number % 10


@pytest.mark.parametrize("text", ["yes", "Yes.", "**Yes**, it is", "YES", "是", "是的，它是", "true", " “是”"])
def test_yes(text: str) -> None:
    assert yes_or_no(text) is True


@pytest.mark.parametrize("text", ["no", "No, since", "**no**", "否", "不是", "不，", "False"])
def test_no(text: str) -> None:
    assert yes_or_no(text) is False


@pytest.mark.parametrize("text", ["", "perhaps", "nothing", "yesterday", "The answer is yes"])
def test_neither(text: str) -> None:
    with pytest.raises(MalformedError, match="neither"):
        yes_or_no(text)


def test_scores() -> None:
    assert scores_of('```json\n{"scores": [1, 9.5]}\n```', 2, 1, 10) == [1.0, 9.5]
    assert scores_of("They are [1, 10].", 2, 1, 10) == [1.0, 10.0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"scores": [1]}', "wrong_number"),
        ('{"score": [1, 2]}', "wrong_number"),
        ('{"scores": "1, 2"}', "wrong_number"),
        ('{"scores": [1, 11]}', "out_of_range"),
        ('{"scores": [1, 1e999]}', "out_of_range"),
        ('{"scores": [1, "2"]}', "no_number"),
        ('{"scores": [1, true]}', "no_number"),
        ("eight and nine", "no_json"),
    ],
)
def test_scores_that_are_none(text: str, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        scores_of(text, 2, 1, 10)


def test_texts() -> None:
    assert text_of({"a": " x\n"}, "a") == "x"
    assert text_of({"a": 3}, "a") == "3"
    assert text_of({"a": None}, "a", may_be_empty=True) == ""
    assert text_of({}, "a", may_be_empty=True) == ""
    for fields, reason in (({}, "no_a"), ({"a": []}, "no_a"), ({"a": True}, "no_a"), ({"a": " "}, "empty")):
        with pytest.raises(MalformedError, match=reason):
            text_of(fields, "a")
    with pytest.raises(MalformedError, match="not_text"):
        checked_text("\udc00")
