"""Tokens torn out of characters: their names, the characters they can belong to, and whether they can do harm."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.tokenizer.byte_level_model import LETTERS, to_bytes, to_letters
from colossal_llama2.tokenizer.byte_level_tokens import characters, may_stand, name_of, text_of, torn_ends


def _token(raw: bytes) -> str:
    return "".join(LETTERS[byte] for byte in raw)


@pytest.mark.parametrize(
    ("raw", "torn", "name"),
    [
        ("你好".encode(), 0, "你好"),
        (b" the", 0, "▁the"),
        ("你".encode()[:2], 1, "<0xE4><0xBD>"),
        ("你".encode()[1:], 2, "<0xBD><0xA0>"),
        ("你".encode()[1:] + "好".encode(), 2, "<0xBD><0xA0>好"),
        (b"a" + "😀".encode()[:3], 1, "a<0xF0><0x9F><0x98>"),
        (b"\xa0" + "é".encode()[:1], 3, "<0xA0><0xC3>"),
        (b"\xbd", 2, "<0xBD>"),
    ],
)
def test_torn_tokens_are_named_and_rated(raw: bytes, torn: int, name: str) -> None:
    token = _token(raw)
    assert to_bytes(token) == raw
    assert torn_ends(token) == torn
    assert name_of(token) == name


@given(st.binary(min_size=1, max_size=6), st.binary(min_size=1, max_size=6))
def test_no_two_tokens_have_one_text(one: bytes, other: bytes) -> None:
    assert (text_of(_token(one)) == text_of(_token(other))) == (one == other)


def test_letters_of_a_text_are_its_bytes() -> None:
    assert to_letters(" the\n你") == "ĠtheĊä½ł"


@given(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), st.integers(1, 2))
@settings(deadline=None, max_examples=50)
def test_every_character_is_found_by_either_end_of_it(character: str, cut: int) -> None:
    raw = character.encode()
    if cut < len(raw):
        assert character in characters(raw[:cut], at_start=True)
        assert character in characters(raw[cut:], at_start=False)
        for part, at_start in ((raw[:cut], True), (raw[cut:], False)):
            found = characters(part, at_start)
            assert len(set(found)) == len(found)
            some = found[:: len(found) // 50 + 1]
            assert all((one.encode().startswith if at_start else one.encode().endswith)(part) for one in some)


_OLD = "abc é’—ж、"


@given(
    st.text(st.sampled_from("abé’你好、ж—😀"), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(0, 3),
    st.text(st.sampled_from(_OLD), max_size=8),
)
@settings(deadline=None)
def test_a_token_that_may_stand_is_found_in_no_old_text(text: str, front: int, back: int, old: str) -> None:
    raw = text.encode()[front : len(text.encode()) - back]
    if raw and may_stand(_token(raw), lambda text: not set(_OLD).issuperset(text)):
        assert raw not in old.encode()


def test_what_is_torn_may_stand_where_its_characters_are_all_new() -> None:
    def new(text: str) -> bool:
        return not set(_OLD).issuperset(text)

    assert may_stand(_token("你".encode()[:2]), new)
    assert not may_stand(_token("’".encode()[:2]), new)  # the same two bytes begin — and other old punctuation
    assert not may_stand(_token("你".encode()[1:]), new)
    assert may_stand(_token("你".encode()[1:] + "好".encode()), new)
    assert not may_stand(_token(b"ab"), new)
    assert all(may_stand(_token(raw), lambda _: True) for raw in (b"\xe2\x80", b"\x80a", b"ab"))


def test_the_inside_of_characters_alone_never_may() -> None:
    assert not may_stand(_token(b"\xbd\xa0"), lambda _: True)
