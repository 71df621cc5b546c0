"""What was said, taken back and tried again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.chat.talk.conversation import Conversation
from colossal_llama2.dataset.conversation import Turn


@given(deeds=st.lists(st.sampled_from(["ask", "answer", "silence", "again", "undo"]), max_size=12))
def test_user_and_assistant_take_turns_whatever_is_done(deeds: list[str]) -> None:
    held = Conversation("be kind")
    for number, deed in enumerate(deeds):
        if deed == "ask":
            held.ask(f"q{number}")
        elif deed == "answer" and held.is_asked:
            assert held.answer(f"a{number}")
        elif deed == "silence" and held.is_asked:
            assert not held.answer(" \n")
        elif deed == "again":
            assert held.ask_again() == held.is_asked
        elif deed == "undo":
            held.undo()
    roles = [turn.role for turn in held.turns]
    assert roles == ["system", *("assistant" if place % 2 else "user" for place in range(len(roles) - 1))]


def test_an_unanswered_message_is_replaced_and_returned() -> None:
    held = Conversation()
    assert held.ask("one") is None
    assert held.ask("two") == Turn("user", "one")
    assert held.turns == [Turn("user", "two")]
    assert held.undo() == Turn("user", "two")
    assert held.undo() is None
    assert not held.ask_again()


def test_going_on_from_other_turns_takes_their_system_message() -> None:
    held = Conversation("old")
    turns = [Turn("system", "new"), Turn("user", "a"), Turn("assistant", "b")]
    held.replace(turns)
    assert (held.system, held.turns) == ("new", turns)
    held.replace(turns[1:])
    assert held.turns == turns[1:]
    held.reset()
    assert held.turns == []
