"""An expansion leaves the base as it is and puts new pieces behind it, below every merge of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from colossal_llama2.tokenizer.expand import expand_model, new_scores
from colossal_llama2.tokenizer.folder import MarkerToken
from colossal_llama2.tokenizer.piece_model import CONTROL, NORMAL, PieceModel, parse_piece_model


@pytest.fixture
def model(piece_model_bytes: Callable[..., bytes]) -> PieceModel:
    return parse_piece_model(piece_model_bytes())


def test_base_is_untouched_and_new_pieces_follow_in_order(model: PieceModel) -> None:
    before = [(entry.piece, entry.score, entry.type) for entry in model.pieces]
    expanded = expand_model(model, ["今天天气", "天气", "今天"])
    assert [(entry.piece, entry.score, entry.type) for entry in expanded.pieces][: len(before)] == before
    assert [(entry.piece, entry.score, entry.type) for entry in model.pieces] == before
    new = expanded.pieces[len(before) :]
    assert [entry.piece for entry in new] == ["今天天气", "天气", "今天"]
    assert all(entry.type == NORMAL for entry in new)
    assert new[0].score > new[1].score > new[2].score
    assert expanded.trainer_spec.vocab_size == len(expanded.pieces)


def test_merges_may_come_in_another_order_than_ids(model: PieceModel) -> None:
    expanded = expand_model(model, ["天气", "今天"], merge_order=["今天", "天气"])
    scores = {entry.piece: entry.score for entry in expanded.pieces}
    assert [entry.piece for entry in expanded.pieces][-2:] == ["天气", "今天"]
    assert min(entry.score for entry in model.pieces) > scores["今天"] > scores["天气"]


def test_text_without_new_pieces_gets_the_tokens_it_had(model: PieceModel) -> None:
    expanded = expand_model(model, ["今天", "天气"])
    old, new = (SentencePieceProcessor(model_proto=m.SerializeToString()) for m in (model, expanded))
    text = "the quick brown fox  jumps\n今 天 气 over 37 lazy dogs"
    assert new.encode(text) == old.encode(text)
    assert len(new.encode("今天天气")) < len(old.encode("今天天气"))


def test_tokens_beyond_the_pieces_come_first_and_never_out_of_a_text(model: PieceModel) -> None:
    size = len(model.pieces)
    beyond = [MarkerToken(size, "<pad>"), MarkerToken(size + 1, "[USER]", special=False)]
    expanded = expand_model(model, ["今天"], beyond)
    assert [entry.piece for entry in expanded.pieces[size:]] == ["<pad>", "[USER]", "今天"]
    assert [entry.type for entry in expanded.pieces[size:]] == [CONTROL, CONTROL, NORMAL]
    processor = SentencePieceProcessor(model_proto=expanded.SerializeToString())
    assert not {size, size + 1} & set(processor.encode("a<pad>b [USER]"))


@given(
    lowest=st.one_of(st.floats(-(2.0**40), 8, width=32), st.sampled_from([-31740.0, -16777216.0, -16777217.0, -1e9])),
    count=st.integers(0, 3000),
)
def test_scores_fall_and_are_unique_in_float32(lowest: float, count: int) -> None:
    model = parse_piece_model(b"\x0a\x08\x0a\x01a\x15\x00\x00\x00\x00")
    model.pieces.add(piece="ab", score=lowest, type=NORMAL)
    scores = new_scores(model, count)
    assert scores.dtype == np.float32
    assert len(scores) == count
    kept = [np.float32(entry.score) for entry in model.pieces]
    assert count == 0 or scores[0] < min(kept)
    assert len(np.unique(scores)) == count
    assert bool(np.all(np.diff(scores) < 0))


def test_runs_of_spaces_do_not_push_new_scores_into_the_depths(model: PieceModel) -> None:
    plain = new_scores(model, 5)
    model.pieces.add(piece="▁▁▁▁▁▁▁", score=-1e9, type=NORMAL)
    assert new_scores(model, 5).tolist() == plain.tolist()
