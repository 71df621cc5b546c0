"""Markers are found as the tokenizer itself finds its added tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from colossal_llama2.dataset.conversation_markers import Marker, Markers, strip_blanks

ADDED = [
    AddedToken("<a>", special=True, normalized=False),
    AddedToken("<a><b>", special=True, normalized=False),
    AddedToken("<l>", special=True, normalized=False, lstrip=True),
    AddedToken("<r>", special=True, normalized=False, rstrip=True),
    AddedToken("word", special=False, normalized=False, single_word=True),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.add_tokens(ADDED)
    return made


@settings(deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["<a>", "<b>", "<l>", "<r>", "word", " ", "\n", "\u3000", "\x1f", "x", "<a", "_"]), max_size=12
    )
)
def test_they_are_those_that_tokenizers_finds(tokenizer: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    ids: dict[str, int] = {token.content: tokenizer.token_to_id(token.content) or 0 for token in ADDED}
    markers = Markers(
        tuple(
            Marker(ids[token.content], token.content, token.lstrip, token.rstrip, token.single_word) for token in ADDED
        )
    )
    found = list(markers.find(text, 0, len(text)))
    encoding = tokenizer.encode(text, add_special_tokens=False)
    theirs = [
        (index, tuple(span))
        for index, span in zip(encoding.ids, encoding.offsets, strict=True)
        if index in ids.values()
    ]
    assert [index for index, _ in theirs] == [one.marker.id for one in found]
    # Their spans hold the blanks that a marker swallows; those belong to no text between markers here.
    at, swallow, rest = 0, False, ""
    for one in found:
        begin, end = strip_blanks(text, at, one.begin, swallow, one.marker.lstrip)
        rest += text[begin:end]
        at, swallow = one.end, one.marker.rstrip
    begin, end = strip_blanks(text, at, len(text), swallow, False)
    rest += text[begin:end]
    others = [span for index, span in zip(encoding.ids, encoding.offsets, strict=True) if index not in ids.values()]
    assert rest == "".join(text[begin:end] for begin, end in others)
    assert markers.stand_in(text) == bool(found)


def test_no_markers_are_found_where_there_are_none() -> None:
    empty = Markers(())
    assert list(empty.find("<s>", 0, 3)) == []
    assert not empty.stand_in("<s>")


def test_only_the_part_named_is_searched() -> None:
    markers = Markers((Marker(7, "<s>"),))
    assert [one.begin for one in markers.find("<s><s><s>", 3, 6)] == [3]
    assert list(markers.find("<s><s>", 1, 5)) == []
