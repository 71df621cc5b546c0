"""Every layout to the same example, and everything else refused with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.dataset.conversation import Answer, Example, Place, Turn, best_conversation, cut_points
from colossal_llama2.dataset.conversation_layouts import Layout, read_record, recognise
from colossal_llama2.errors import InputError

PLACE = Place(Path("in/a.jsonl"), 7)
ASKED = (Turn("user", "q"),)
ONE = Example(ASKED, (Answer("a"),))
TWO = Example(ASKED, (Answer("a", 0), Answer("b", 1)))
LONGER = Example((Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r")), (Answer("b"),))
M = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def said(
    *contents: str, names: tuple[str, str] = ("from", "content"), roles: tuple[str, str] = ("human", "assistant")
) -> Any:
    return [{names[0]: roles[number % 2], names[1]: content} for number, content in enumerate(contents)]


@pytest.mark.parametrize(
    ("layout", "fields", "example"),
    [
        ("instruction", {"instruction": "q", "input": "", "output": "a"}, ONE),
        ("instruction", {"instruction": "q", "output": "a", "input": None}, ONE),
        (
            "instruction",
            {"instruction": "q", "input": "more", "output": "a"},
            Example((Turn("user", "q\n\nmore"),), (Answer("a"),)),
        ),
        ("instruction", {"instruction": "r", "output": "b", "history": [["q", "a"]], "input": ""}, LONGER),
        (
            "instruction",
            {"instruction": "q", "output": "a", "system": "be kind"},
            Example((Turn("system", "be kind"), Turn("user", "q")), (Answer("a"),)),
        ),
        ("completion", {"prompt": "q", "completion": "a"}, ONE),
        ("completion", {"user_input": "q", "completion": "a"}, ONE),
        ("completion", {"prompt": "q", "response": "a"}, ONE),
        ("completion", {"prompt": "\n\nHuman: q\n\nAssistant:", "completion": " a\n"}, ONE),
        ("completion", {"prompt": "q", "completion": " a"}, Example(ASKED, (Answer(" a"),))),
        ("completion", {"prompt": "q", "completion": "a", "label": False}, Example(ASKED, (Answer("a", 1),), True)),
        ("messages", {"messages": said("q", "a")}, ONE),
        ("messages", {"messages": said("q", "a", "r", "b")}, LONGER),
        ("messages", {"messages": said("q", "a", roles=("user", "assistant"), names=("role", "content"))}, ONE),
        ("messages", {"conversations": said("q", "a", roles=("human", "gpt"), names=("from", "value"))}, ONE),
        ("messages", {"messages": said("q", "a", "r")}, Example(LONGER.turns)),
        (
            "messages",
            {"messages": [{"role": "system", "content": "s"}, *M]},
            Example((Turn("system", "s"), *ASKED), (Answer("a"),)),
        ),
        ("messages", {"messages": [{"role": "system", "content": ""}, *M]}, ONE),
        ("human_assistant", {"human": "q", "assistant": "a"}, ONE),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}, TWO),
        ("preference", {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, TWO),
        ("preference", {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b "}, TWO),
        ("preference", {"prompt": "q", "chosen": M, "rejected": [M[0], {"role": "assistant", "content": "b"}]}, TWO),
        ("preference", {"chosen": M, "rejected": [M[0], {"role": "assistant", "content": "b"}]}, TWO),
        (
            "preference",
            {"context": said("q"), "chosen": said("", "a")[1:], "rejected": {"from": "assistant", "content": "b"}},
            TWO,
        ),
        (
            "preference",
            {"prompt": "q", "chosen": "a", "rejected": ["b", "c"]},
            Example(ASKED, (Answer("a", 0), Answer("b", 1), Answer("c", 1))),
        ),
        ("transcript", {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, TWO),
        (
            "responses",
            {"prompt": "q", "responses": ["b", "a", "c"], "scores": [1, 2.5, 1]},
            Example(ASKED, (Answer("b", 1), Answer("a", 0), Answer("c", 1))),
        ),
        (
            "responses",
            {"prompt": "q", "answers": ["b", "a"], "ranks": [2, 1]},
            Example(ASKED, (Answer("b", 1), Answer("a", 0))),
        ),
        ("prompt", {"prompt": "q"}, Example(ASKED)),
        ("prompt", {"prompt": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:"}, Example(LONGER.turns)),
        ("prompt", {"prompt": said("q")}, Example(ASKED)),
    ],
)
def test_every_layout_is_recognised_and_read(layout: Layout, fields: dict[str, Any], example: Example) -> None:
    assert recognise(fields) == layout
    read = read_record(fields, layout, PLACE)
    assert read.example == example
    assert read.passed_over == ()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": "x"}, "is no messages record"),
        ({"messages": []}, "not a list of messages"),
        ({"messages": "q"}, "not a list of messages"),
        ({"messages": ["q"]}, "message 1 of"),
        ({"messages": [{"role": "user"}]}, "is missing"),
        ({"messages": [{"role": "user", "content": "  \n"}]}, "says nothing"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "is a JSON list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "'tool', which is no known role"),
        ({"messages": [{"content": "x"}]}, "None, which is no known role"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]}, "calls tools"),
        ({"instruction": "", "output": "a"}, '"instruction" says nothing'),
        ({"instruction": "q", "output": None}, '"output" is missing'),
        ({"instruction": "q", "output": 3}, '"output" is a JSON int'),
        ({"instruction": "q", "output": "a", "input": 3}, '"input" is a JSON int'),
        ({"instruction": "q", "output": "a", "history": [["q"]]}, 'entry 1 of "history"'),
        ({"instruction": "q", "output": "a", "history": 5}, 'entry 1 of "history"'),
        ({"prompt": "q", "completion": "a", "label": 1}, '"label" is neither'),
        ({"prompt": "q", "completion": said("q", "a")}, "not one message of the assistant"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, '"rejected" says nothing'),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, "not a list of messages"),
        ({"chosen": said("q", "a"), "rejected": said("r", "b")}, "do not differ in their last answer alone"),
        ({"chosen": said("q"), "rejected": said("q")}, "do not differ in their last answer alone"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "b"}, '"rejected" is no transcript'),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q"}, "do not differ"),
        ({"prompt": "\n\nHuman:\n\nAssistant: a"}, "turn 1 of the transcript says nothing"),
        ({"prompt": "q", "responses": ["a", "b"]}, '"scores" is not one number for each'),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1]}, '"scores" is not one number for each'),
        ({"prompt": "q", "responses": ["a", "b"], "ranks": [True, False]}, '"ranks" is not one number for each'),
        ({"prompt": "q", "responses": "a", "ranks": [1]}, "not a list of answers"),
        ({"prompt": 5}, '"prompt" is a JSON int'),
        ({"human": "q", "assistant": {"a": 1}}, '"assistant" is a JSON dict'),
    ],
)
def test_what_is_no_record_is_refused_with_its_place(fields: dict[str, Any], reason: str) -> None:
    layout = recognise(fields) or "messages"
    with pytest.raises(InputError) as caught:
        read_record(fields, layout, PLACE)
    assert reason in caught.value.what
    assert str(caught.value).startswith("in/a.jsonl:7: ")


def test_a_record_of_another_layout_than_the_file_is_refused() -> None:
    with pytest.raises(InputError, match=r"a\.jsonl:7: is no messages record \(its fields: prompt, completion\)"):
        read_record({"prompt": "q", "completion": "a"}, "messages", PLACE)


def test_fields_that_are_not_read_are_named() -> None:
    fields = {"messages": [{**M[0], "weight": 0}, {**M[1], "name": None}], "id": 5, "tags": [], "lang": "zh"}
    assert read_record(fields, "messages", PLACE).passed_over == ("id", "lang", "messages.weight")
    fields = {"prompt": "q", "response": "c", "chosen": "a", "rejected": "b"}
    assert read_record(fields, "preference", PLACE).passed_over == ("response",)


def test_the_key_is_of_the_turns_before_the_answers() -> None:
    same = [ONE, TWO, Example(ASKED)]
    assert len({example.key for example in same}) == 1
    others = [ONE, LONGER, Example((Turn("user", "Q"),)), Example((Turn("assistant", "q"),)), ONE.with_system("s")]
    assert len({example.key for example in others}) == len(others)
    assert 0 <= ONE.key < 1 << 64


def test_a_system_turn_is_put_ahead_once() -> None:
    with_one = ONE.with_system("s")
    assert with_one.turns == (Turn("system", "s"), Turn("user", "q"))
    assert with_one.with_system("t") is with_one
    assert ONE.with_system("") is ONE


def test_the_best_answer_ends_the_conversation() -> None:
    worse_first = Example(ASKED, (Answer("b", 1), Answer("a", 0), Answer("c", 0)))
    assert best_conversation(worse_first)[-1] == Turn("assistant", "a")
    assert best_conversation(Example(LONGER.turns)) == list(LONGER.turns[:2])
    assert best_conversation(Example(ASKED)) == []


def test_conversations_are_cut_behind_the_assistant() -> None:
    roles = ["system", "user", "assistant", "assistant", "user", "user", "assistant"]
    assert cut_points([Turn(role, "x") for role in roles]) == [4, 7]
