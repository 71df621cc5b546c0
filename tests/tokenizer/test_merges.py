"""The merges of a word are those that SentencePiece makes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colossal_llama2.tokenizer.expand import expand_model
from colossal_llama2.tokenizer.merges import Merges
from colossal_llama2.tokenizer.piece_model import NORMAL, PieceModel, as_text, parse_piece_model
from colossal_llama2.tokenizer.reachability import processor_without_prefix

NEW = ["今天", "天气", "很好", "今天天气", "天气很", "▁今天气", "▁▁今天", "foxdog", "gf."]


@pytest.fixture(scope="module")
def model(piece_model_bytes: Callable[..., bytes]) -> PieceModel:
    model = parse_piece_model(piece_model_bytes())
    for length in (5, 6, 7, 8):  # as in Llama-2
        model.pieces.add(piece="▁" * length, score=-1e9, type=NORMAL)
    return model


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("今天气很好foxdge.▁", min_size=1, max_size=25), st.permutations(NEW))
def test_words_end_as_sentencepiece_ends_them(model: PieceModel, word: str, order: list[str]) -> None:
    merges = Merges(model)
    merges.append(order)
    processor = processor_without_prefix(expand_model(model, order))
    parts, made = merges.run(word)
    assert list(parts) == processor.encode(as_text(word), out_type=str)
    assert "".join(parts) == word
    assert len(made) == len(word) - len(parts)


def test_a_raised_piece_comes_first_and_goes_back(model: PieceModel) -> None:
    merges = Merges(model)
    merges.append(["天气", "今天"])
    assert merges.run("今天气")[0] == ("今", "天气")
    before = merges.turns_of(["今天"])
    merges.raise_to_front(["今天"])
    assert merges.run("今天气")[0] == ("今天", "气")
    assert merges.in_order(["天气", "今天"]) == ["今天", "天气"]
    assert merges.run("the")[0] == Merges(model).run("the")[0]
    merges.restore(before)
    assert merges.run("今天气")[0] == ("今", "天气")


def test_a_copy_is_its_own(model: PieceModel) -> None:
    base = Merges(model)
    twin = base.copy()
    twin.append(["今天"])
    assert "今天" in twin
    assert "今天" not in base
