"""The conversion gives SentencePiece's ids on any text, and refuses what it could not repeat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.expand import expand_model
from colossal_llama2.tokenizer.fast import ranked_merges, set_boundaries, tied_pieces, to_fast
from colossal_llama2.tokenizer.folder import MarkerToken
from colossal_llama2.tokenizer.piece_model import CONTROL, NORMAL, SPACE_MARK, parse_piece_model, piece_ids

VARIANTS: list[dict[str, Any]] = [
    {},
    {"add_dummy_prefix": False},
    {"remove_extra_whitespaces": True},
    {"byte_fallback": False, "vocab_size": 300},
    {"add_dummy_prefix": False, "remove_extra_whitespaces": True, "byte_fallback": False, "vocab_size": 300},
]
NASTY = st.text(
    alphabet=st.one_of(
        st.sampled_from(list(" \t\n\r\0▁.fotheqickuo0123今天气好<s>/😀é\u0301\u200d\u3000")),
        st.characters(codec="utf-8"),
    ),
    max_size=60,
)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_any_text_gets_the_ids_of_sentencepiece(
    options: dict[str, Any], piece_model_bytes: Callable[..., bytes]
) -> None:
    raw = piece_model_bytes(**options)
    base = parse_piece_model(raw)
    wanted = ["今天", "天气", "今天天气", "很好", "foxes", "▁今天", "模型"]
    model = expand_model(base, [piece for piece in wanted if piece not in piece_ids(base)])
    processor = SentencePieceProcessor(model_proto=model.SerializeToString())
    fast = to_fast(model, [], Path("m"))
    fast.encode_special_tokens = True

    @settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(NASTY)
    def agree(text: str) -> None:
        assert fast.encode(text, add_special_tokens=False).ids == processor.encode(text)

    agree()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=NASTY)
def test_decoding_gives_the_text_back(text: str, piece_model_bytes: Callable[..., bytes]) -> None:
    fast = to_fast(parse_piece_model(piece_model_bytes()), [], Path("m"))
    fast.encode_special_tokens = True
    ids = fast.encode(text, add_special_tokens=False).ids
    assert fast.decode(ids, skip_special_tokens=False) == text.replace(SPACE_MARK, " ")


def test_merges_come_in_the_order_of_scores(piece_model_bytes: Callable[..., bytes]) -> None:
    model = parse_piece_model(piece_model_bytes())
    scores = {entry.piece: entry.score for entry in model.pieces}
    order = [scores[left + right] for left, right in ranked_merges(model)]
    assert len(order) > 200
    assert order == sorted(order, reverse=True)


def test_boundaries_and_special_tokens(piece_model_bytes: Callable[..., bytes]) -> None:
    fast = to_fast(parse_piece_model(piece_model_bytes()), [], Path("m"))
    set_boundaries(fast, "<s>", "</s>")
    inner = fast.encode("the fox", add_special_tokens=False).ids
    assert fast.encode("the fox").ids == [1, *inner, 2]
    assert 2 in fast.encode("the</s>fox").ids[1:-1]
    fast.encode_special_tokens = True
    assert 2 not in fast.encode("the</s>fox").ids[1:-1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram"}, "Unigram"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises text"),
        ({"treat_whitespace_as_suffix": True}, "behind words"),
        ({"user_defined_symbols": "<sep>"}, "user-defined"),
    ],
)
def test_what_cannot_be_repeated_is_refused(
    options: dict[str, Any], reason: str, piece_model_bytes: Callable[..., bytes]
) -> None:
    with pytest.raises(InputError, match=reason):
        to_fast(parse_piece_model(piece_model_bytes(**options)), [], Path("m"))


def test_user_defined_pieces_without_a_prefix_are_cut_out_of_any_text(piece_model_bytes: Callable[..., bytes]) -> None:
    raw = piece_model_bytes(user_defined_symbols="<sep>,<sep>>", add_dummy_prefix=False)
    processor = SentencePieceProcessor(model_proto=raw)
    fast = to_fast(parse_piece_model(raw), [], Path("m"))
    for text in ("<sep>", "a<sep> b", "the<sep>><sep>fox ", "  <sep><sep>"):
        assert fast.encode(text, add_special_tokens=False).ids == processor.encode(text)


def test_equal_scores_are_refused_and_runs_of_spaces_are_not(piece_model_bytes: Callable[..., bytes]) -> None:
    model = parse_piece_model(piece_model_bytes())
    assert tied_pieces(model) == []
    for piece in ("▁▁▁▁▁▁", "▁▁▁▁▁▁▁"):
        model.pieces.add(piece=piece, score=-1e9, type=NORMAL)
    assert tied_pieces(model) == []
    for piece in ("foxdog", "dogfox"):
        model.pieces.add(piece=piece, score=0.5, type=NORMAL)
    assert tied_pieces(model) == ["foxdog", "dogfox"]
    with pytest.raises(InputError, match="not unique"):
        to_fast(model, [], Path("m"))


def test_added_tokens_keep_their_ids_or_are_refused(piece_model_bytes: Callable[..., bytes]) -> None:
    model = parse_piece_model(piece_model_bytes())
    size = len(model.pieces)
    fast = to_fast(model, [MarkerToken(size, "<pad>"), MarkerToken(size + 1, "[USER]", special=False)], Path("m"))
    assert (fast.token_to_id("<pad>"), fast.token_to_id("[USER]")) == (size, size + 1)
    with pytest.raises(InputError, match="next free one"):
        to_fast(model, [MarkerToken(size + 3, "<pad>")], Path("m"))
    with pytest.raises(InputError, match="the model calls it"):
        to_fast(model, [MarkerToken(1, "<bos>")], Path("m"))
    assert model.pieces[1].type == CONTROL
