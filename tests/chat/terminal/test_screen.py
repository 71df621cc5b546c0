"""Replies go to standard output, notes beside them, and nothing a model writes reaches the terminal's controls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.chat.terminal.screen import Screen, visible


@given(text=st.text())
def test_no_control_character_is_left(text: str) -> None:
    shown = visible(text)
    assert len(shown) == len(text)
    assert not any((sign < " " and sign not in "\n\t") or "\x7f" <= sign <= "\x9f" for sign in shown)
    if text.isprintable():
        assert shown == text


def test_what_stands_in_the_way_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert visible("a\x1b]0;x\x07\x9b\r") == "a␛]0;x␇\ufffd␍"


def test_replies_and_notes_go_different_ways(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.part("a\x1b")
    screen.note("b")
    screen.end_reply()
    told = capsys.readouterr()
    assert told.out == "a\x1b\n"  # in a pipe as it is
    assert told.err == "[b]\n"
