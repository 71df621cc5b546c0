"""A filtered word is found however it is written, and no part of it goes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.chat.serving.reply_text import ReplyText
from colossal_llama2.chat.serving.word_filter import WordFilter, read_words
from colossal_llama2.errors import InputError

WORDS = WordFilter(["ass", "Bad Word", "坏人", "naïve", "a.b", "assassin's"])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("an ass", 3),
        ("ASS!", 0),
        ("class, asset, brass", None),
        ("ａｓｓ", 0),
        ("a\u200bss", 0),
        ("一个坏人来", 2),
        ("他是ass吗", 2),
        ("bad word", 0),
        ("bad  word", 0),
        ("so bad\r\n \u3000word", 3),
        ("badword", None),
        ("坏\ufe0f人", 0),
        ("a\x08s\u034fs", 0),
        ("bad words", None),
        ("so naïve", 3),
        ("so nai\u0308ve", 3),
        ("a.b", 0),
        ("xa.b", None),
        ("", None),
    ],
)
def test_words_are_found_where_they_stand_alone(text: str, place: int | None) -> None:
    assert WORDS.find(text) == place


class Parts:
    """Stands in for what makes text of tokens: token i is the i-th part, and the reply never ends by itself."""

    finish = None

    def __init__(self, parts: list[str]) -> None:
        self._parts = parts

    def put(self, token: int) -> str:
        return self._parts[token]

    def end(self) -> str:
        return ""


def stream(parts: list[str]) -> tuple[list[str], str]:
    source: Any = Parts(parts)
    reply, sent = ReplyText(source, WORDS), []
    for token in range(len(parts)):
        text, reason = reply.put(token)
        sent.append(text)
        if reason:
            return sent, reason
    text, reason = reply.finish("length")
    return [*sent, text], reason


_PIECES = st.sampled_from(
    ["ass", "as", "s", "a", "in", "'s", " ", "bad", "word", "坏", "人", "x", ".", "b", "\u200b", "\n"]
)


@given(st.lists(_PIECES, max_size=30))
def test_a_stream_is_the_text_up_to_the_first_word(pieces: list[str]) -> None:
    text = "".join(pieces)
    place = WORDS.find(text)
    sent, reason = stream(pieces)
    assert "".join(sent) == text[:place]
    assert reason == ("length" if place is None else "content_filter")
    assert "".join(stream(list(text))[0]) == text[:place]


def test_only_what_may_become_a_word_is_held_back() -> None:
    sent, _ = stream(["the cl", "ass is a", "s", " good as any"])
    assert sent == ["the cl", "ass is ", "", "as good as any", ""]


def test_words_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\ufeffone\r\n\n  two \n", encoding="utf-8")
    words = read_words(path)
    assert words.find("TWO") == 0
    assert words.find("onetwo") is None
    path.write_text("\n\n")
    with pytest.raises(InputError, match="holds no word"):
        read_words(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        read_words(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_words(tmp_path / "none")
