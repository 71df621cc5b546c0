"""Every line of a piece list ends in exactly one of new, existing, repeated, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.piece_list import WantedPiece, read_piece_list, sort_pieces
from colossal_llama2.tokenizer.piece_model import USER_DEFINED, PieceModel, parse_piece_model


@pytest.fixture
def model(piece_model_bytes: Callable[..., bytes]) -> PieceModel:
    return parse_piece_model(piece_model_bytes())


def wanted(*pieces: str) -> list[WantedPiece]:
    return [WantedPiece(piece, line) for line, piece in enumerate(pieces, 1)]


def test_new_existing_and_repeated(model: PieceModel) -> None:
    result = sort_pieces(wanted("今天", "▁the", "天气", "今天", "▁the", "x", ""), model, [])
    assert result.new == ("今天", "天气")
    assert result.existing == ("▁the", "x")
    assert result.repeated == ("今天", "▁the")
    assert [(piece.line, piece.reason) for piece in result.refused] == [(7, "empty")]


@pytest.mark.parametrize(
    ("piece", "reason"),
    [
        ("", "empty"),
        (" ", "whitespace only"),
        ("▁" * 20, "whitespace only"),
        ("\u3000", "whitespace only"),
        ("\v", "whitespace only"),
        ("a\nb", "control"),
        ("a\x00", "control"),
        ("\x7f", "control"),
        ("\uffff", "unassigned"),
        ("天" * 129, "129 characters long"),
        ("x" * 10_000, "10000 characters long"),
        ("<s>", "special token <s>"),
        ("a</s>b", "special token </s>"),
        ("<0x0A>", "special token <0x0A>"),
        ("[USER]", "special token"),
        ("a b", "normalisation"),
    ],
)
def test_refused_with_a_reason(piece: str, reason: str, model: PieceModel) -> None:
    result = sort_pieces(wanted("今天", piece), model, ["[USER]"])
    assert result.new == ("今天",)
    assert [refused.line for refused in result.refused] == [2]
    assert reason in result.refused[0].reason


def test_what_is_cut_out_of_every_text_is_in_no_piece(model: PieceModel) -> None:
    (entry,) = (entry for entry in model.pieces if entry.piece == "国")
    entry.type = USER_DEFINED
    result = sort_pieces(wanted("今天", "中国", "国"), model, [])
    assert (result.new, result.existing) == (("今天",), ("国",))
    assert [(piece.piece, "user-defined piece 国" in piece.reason) for piece in result.refused] == [("中国", True)]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.one_of(st.text(max_size=6), st.sampled_from(["今天", "▁the", "▁", "<s>", ""])), max_size=12))
def test_nothing_is_lost(pieces: list[str], model: PieceModel) -> None:
    result = sort_pieces(wanted(*pieces), model, [])
    assert sorted(
        [*result.new, *result.existing, *result.repeated, *(item.piece for item in result.refused)]
    ) == sorted(pieces)
    assert len(set(result.new)) == len(result.new)


def test_reading_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "pieces.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"piece": "a"}\r\n\r\n{"piece": "b", "n": 1}')
    assert read_piece_list(path) == [WantedPiece("a", 1), WantedPiece("b", 3)]
    for bad, complaint in (
        ('{"word": "a"}', 'no "piece"'),
        ('{"piece": 3}', "is a JSON int"),
        ("[1]", "not an object"),
        ("{", "not JSON"),
        (json.dumps({"piece": "\ud800"}), "surrogate"),
    ):
        path.write_text('{"piece": "a"}\n' + bad)
        with pytest.raises(InputError, match=f"pieces.jsonl:2: .*{complaint}"):
            read_piece_list(path)
    path.write_text("\n\n")
    with pytest.raises(InputError, match="holds no piece"):
        read_piece_list(path)
