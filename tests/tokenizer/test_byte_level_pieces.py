"""Each line of a list goes where it belongs, by what the tokenizer's own steps make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from colossal_llama2.tokenizer.byte_level_model import read_byte_level
from colossal_llama2.tokenizer.byte_level_pieces import sort_byte_level
from colossal_llama2.tokenizer.piece_list import SortedPieces, WantedPiece


@pytest.fixture
def sort(make_byte_level: Callable[[str], Path]) -> Callable[..., SortedPieces]:
    def sorted_by(family: str, *pieces: str) -> SortedPieces:
        path = make_byte_level(family)
        model = read_byte_level(Tokenizer.from_file(str(path / "tokenizer.json")), path)
        return sort_byte_level([WantedPiece(piece, line) for line, piece in enumerate(pieces, 1)], model, ["<named>"])

    return sorted_by


def test_every_line_is_somewhere_and_the_mark_is_a_space(sort: Callable[..., SortedPieces]) -> None:
    pieces = sort("llama3", "今天", "▁the", "▁今天", "今天", "the", "▁", "ab", "", "a b", " the")
    assert pieces.new == ("今天", "▁今天", "ab")
    assert pieces.existing == ("▁the", "the", "▁")
    assert pieces.repeated == ("今天",)
    assert [(piece.line, piece.piece) for piece in pieces.refused] == [(8, ""), (9, "a b"), (10, " the")]


@pytest.mark.parametrize(
    ("family", "piece", "reason"),
    [
        ("llama3", "", "empty"),
        ("llama3", " ", "whitespace only"),
        ("llama3", "▁▁▁▁▁▁▁▁▁", "whitespace only"),
        ("llama3", "\u3000", "whitespace only"),
        ("llama3", "a b", "holds a space, which a piece writes as ▁"),
        ("llama3", " 今天", "holds a space, which a piece writes as ▁"),
        ("llama3", "今\x07天", "control .* U\\+0007"),
        ("llama3", "今\udc80", "U\\+DC80"),
        ("llama3", "啊" * 10_000, "10000 characters long"),
        ("llama3", "x<|end_of_text|>y", "special token <|end_of_text|>"),
        ("llama3", "<named>", "special token <named>"),
        ("qwen", "a<tool_call>", "special token <tool_call>"),
        ("llama3", "今▁天", "cuts it into '今' and ' 天'"),
        ("llama3", "▁of▁the", "cuts it into ' of' and ' the'"),
        ("llama3", "1234", "cuts it into '123' and '4'"),
        ("llama3", "▁123", "cuts it into ' ' and '123'"),
        ("llama3", "今天。", "cuts it into '今天' and '。'"),
        ("qwen", "12", "cuts it into '1' and '2'"),
        ("qwen", "e\u0301", "after normalisation, which gives é"),
        ("qwen", "\u212b", "after normalisation"),
        ("gpt2", "今天!", "cuts it into '今天' and '!'"),
        ("gpt2", "，今天", "cuts it into '，' and '今天'"),
        ("gpt2", "don't", "cuts it into 'don' and"),
    ],
)
def test_what_can_never_come_out_is_refused_with_the_reason(
    family: str, piece: str, reason: str, sort: Callable[..., SortedPieces]
) -> None:
    pieces = sort(family, piece)
    assert (pieces.new, pieces.existing) == ((), ())
    (refused,) = pieces.refused
    assert (refused.piece, refused.line) == (piece, 1)
    assert __import__("re").search(reason.replace("|", r"\|"), refused.reason), refused.reason


def test_what_one_family_cuts_another_keeps(sort: Callable[..., SortedPieces]) -> None:
    assert sort("gpt2", "1234", "▁1234", "e\u0301").new == ("1234", "▁1234")  # a combining mark is no letter
    assert sort("llama3", "，今天", "123", "。。。").new == ("，今天", "123", "。。。")


def test_letters_of_the_vocabulary_are_text_like_any_other(sort: Callable[..., SortedPieces]) -> None:
    """``Ġthe`` is a letter of Maltese and three more; who means a space writes ▁."""
    assert sort("llama3", "Ġthe").new == ("Ġthe",)
