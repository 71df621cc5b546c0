"""The arrays that mining starts from say what the model does with the text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer import mining_start
from colossal_llama2.tokenizer.expand import expand_model
from colossal_llama2.tokenizer.mining_rules import ALWAYS_OLD, Allowed, CharacterKinds, make_rules
from colossal_llama2.tokenizer.mining_start import make_start
from colossal_llama2.tokenizer.mining_state import BETWEEN, JOINABLE
from colossal_llama2.tokenizer.piece_model import NORMAL, PieceModel, parse_piece_model

KINDS = CharacterKinds(ALWAYS_OLD)


@pytest.fixture
def model(piece_model_bytes: Callable[..., bytes]) -> PieceModel:
    return parse_piece_model(piece_model_bytes())


def test_tokens_are_those_of_the_model_with_missing_characters_whole(model: PieceModel) -> None:
    texts = ["the quick 龘 fox", "今天\n", ""]
    start = make_start(model, texts, make_rules(model, Allowed(), None, (1, 1)), KINDS, 3)
    processor = SentencePieceProcessor(model_proto=model.SerializeToString())
    inside = start.tokens[start.tokens != BETWEEN]
    assert int(start.costs[inside].sum()) == sum(map(len, processor.encode(texts)))
    assert [start.names[token] for token in inside.tolist()].count("龘") == 1
    assert (start.tokens == BETWEEN).sum() == 3
    assert start.documents[start.tokens == BETWEEN].tolist() == [0, 1, 2]
    lacking = start.names.index("龘")
    assert start.missing.tolist() == [[lacking, 2]]  # the line break is no piece to come
    assert not start.pieces.flags[lacking] & JOINABLE
    assert len(start.pieces.flags) == len(start.names) + 3


def test_merges_that_come_last_are_not_made_yet(model: PieceModel) -> None:
    model.pieces.add(piece="▁" * 9, score=-1e9, type=NORMAL)
    for entry in model.pieces:
        if entry.piece in ("▁▁", "▁▁▁", "▁▁▁▁"):
            entry.score = -1e9
    start = make_start(model, ["a    b"], make_rules(model, Allowed(), None, (1, 1)), KINDS, 0)
    assert "▁▁" not in [start.names[token] for token in start.tokens.tolist() if token >= 0]


def test_work_is_a_copy(model: PieceModel) -> None:
    rules = make_rules(model, Allowed(), None, (1, 1))
    start = make_start(model, ["今天"], rules, KINDS, 1)
    work = start.begin([1], rules)
    work.text.tokens[:] = 0
    work.pieces.flags[:] = 0
    assert (start.tokens != 0).any()
    assert (start.pieces.flags != 0).any()
    assert work.text.following.tolist()[-1] == -1
    assert work.text.previous.tolist()[0] == -1


def test_pieces_are_merged_in_their_order(model: PieceModel) -> None:
    expanded = expand_model(model, ["天气", "今天", "今天天气"])
    scores = [entry.score for entry in expanded.pieces[len(model.pieces) :]]
    assert bool(np.all(np.diff(scores) < 0))
    processor = SentencePieceProcessor(model_proto=expanded.SerializeToString())
    assert processor.encode(",今天气", out_type=str)[-2:] == ["今", "天气"]
    assert processor.encode(",今天天气", out_type=str)[-1] == "今天天气"


def test_too_long_a_corpus_is_refused(model: PieceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining_start, "_MOST_TOKENS", 3)
    with pytest.raises(InputError, match="too many to mine"):
        make_start(model, ["the quick brown fox"], make_rules(model, Allowed(), None, (1, 1)), KINDS, 1)
