"""What mining foretells is what SentencePiece does, and every piece of the list can be produced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from colossal_llama2.tokenizer import mining
from colossal_llama2.tokenizer.expand import expand_model
from colossal_llama2.tokenizer.mining import MinedPieces, mine_pieces
from colossal_llama2.tokenizer.mining_rules import ALWAYS_OLD, CharacterKinds
from colossal_llama2.tokenizer.mining_state import DIGIT, NEVER, NEW, Rules
from colossal_llama2.tokenizer.piece_model import NORMAL, PieceModel, halves, parse_piece_model
from colossal_llama2.tokenizer.reachability import unreachable_pieces

RULES = Rules(8, NEVER | DIGIT, NEW, True, True, True, 2, 1)
TEXTS = st.lists(
    st.text(st.sampled_from("天气今龘😀。，’ab  \n\t7"), max_size=40).map(lambda text: text * 2), min_size=1, max_size=6
)
TALK = [f"{a}天天气很好，{b}我们学习语言模型。" for a in ("今", "明", "昨") for b in ("所以", "因为", "听说")]


@pytest.fixture(params=["runs of spaces last", "runs of spaces among the others", "no bytes"])
def model(request: pytest.FixtureRequest, piece_model_bytes: Callable[..., bytes]) -> PieceModel:
    options: dict[str, Any] = {"byte_fallback": False} if request.param == "no bytes" else {}
    model = parse_piece_model(piece_model_bytes(**options))
    if request.param == "runs of spaces last":
        for entry in model.pieces:
            if len(entry.piece) > 1 and not entry.piece.strip("▁"):
                entry.score = -1e9
        for length in range(2, 9):
            if "▁" * length not in {entry.piece for entry in model.pieces}:
                model.pieces.add(piece="▁" * length, score=-1e9, type=NORMAL)
    return model


def mined(model: PieceModel, texts: list[str], number: int = 20, rules: Rules = RULES, **changes: Any) -> MinedPieces:
    kinds = CharacterKinds(ALWAYS_OLD)
    labels = changes.get("labels", ["all"] * len(texts))
    weights = changes.get("weights", [1] * len(texts))
    return mine_pieces(model, (texts, labels), weights, rules, kinds, number)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS)
def test_foretold_is_what_sentencepiece_does(texts: list[str], model: PieceModel) -> None:
    result = mined(model, texts)
    before, after = (SentencePieceProcessor(model_proto=m.SerializeToString()) for m in (
        model, expand_model(model, result.pieces)
    ))  # fmt: skip
    encoded = after.encode(texts)
    assert [len(ids) for ids in encoded] == result.tokens.tolist()
    uses = np.bincount([index for ids in encoded for index in ids], minlength=len(after))[len(model.pieces) :]
    assert uses.tolist() == result.counts.sum(axis=1).tolist()
    for text in ("plain old text", "  a’b 7\n", *(text for text in texts if not set(text) - set("’ab  \n\t7"))):
        assert after.encode(text) == before.encode(text)


def test_tokens_saved_are_those_that_are_gone(model: PieceModel) -> None:
    texts = [text * 3 for text in TALK]
    result = mined(model, texts)
    before = SentencePieceProcessor(model_proto=model.SerializeToString()).encode(texts)
    assert len(result.pieces) == 20
    if model.trainer_spec.byte_fallback:
        assert result.saved.sum() == sum(map(len, before)) - result.tokens.sum() > 0


def test_every_piece_is_a_join_of_earlier_ones_and_comes_out_as_one_token(model: PieceModel) -> None:
    result = mined(model, TALK, 40)
    known = {entry.piece for entry in model.pieces}
    assert len(result.pieces) == len(set(result.pieces)) > 20
    for piece in result.pieces:
        assert piece not in known
        assert len(piece) == 1 or any(left in known and right in known for left, right in halves(piece))
        known.add(piece)
    expanded = expand_model(model, result.pieces)
    assert unreachable_pieces(expanded, range(len(model.pieces), len(expanded.pieces))) == []


def test_uses_are_counted_by_category_and_weighted(model: PieceModel) -> None:
    texts = [",今天,今天,今天", ",天气,天气", ",天气,天气"]
    plain = mined(model, texts, 2, labels=["b", "a", "a"])
    assert plain.categories == ("a", "b")
    where = plain.pieces.index("天气")
    assert plain.counts[where].tolist() == [4, 0]
    assert plain.scores[where] == 4
    heavy = mined(model, texts, 1, labels=["b", "a", "a"], weights=[5, 1, 1])
    assert heavy.pieces == ("今天",)
    assert heavy.scores[0] == 15


def test_a_leaf_that_is_hardly_used_is_taken_out_and_another_found(
    model: PieceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = mined(model, TALK, 5)
    victim = next(row for row, part in enumerate(first.is_part) if not part)
    judge = mining._useless

    def useless(uses: Any, is_part: Any, least: int) -> Any:
        result = judge(uses, is_part, least)
        result[victim] |= victim_is_there.pop() if victim_is_there else False
        return result

    victim_is_there = [True]
    monkeypatch.setattr(mining, "_useless", useless)
    second = mined(model, TALK, 5)
    assert second.pruned == (first.pieces[victim],)
    assert len(second.pieces) == 5
    assert not set(second.pruned) & set(second.pieces)


def test_only_leaves_are_useless() -> None:
    uses = np.array([0, 0, 5, 1])
    assert mining._useless(uses, [True, False, False, False], 2).tolist() == [False, True, False, True]


def test_nothing_to_find(model: PieceModel) -> None:
    result = mined(model, ["plain old text", ""])
    assert result.pieces == ()
    assert result.tokens.shape == (2,)
    assert result.counts.shape == (0, 1)
