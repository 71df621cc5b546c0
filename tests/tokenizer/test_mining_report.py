"""Rates are counted by category and add up."""

from __future__ import annotations

from collections.abc import Callable

from sentencepiece import SentencePieceProcessor

from colossal_llama2.tokenizer.expand import expand_model
from colossal_llama2.tokenizer.mining_corpus import Document
from colossal_llama2.tokenizer.mining_report import Rate, measure_categories
from colossal_llama2.tokenizer.piece_model import parse_piece_model


def test_rates_add_up(piece_model_bytes: Callable[..., bytes]) -> None:
    model = parse_piece_model(piece_model_bytes())
    expanded = expand_model(model, ["今天"])
    documents = [Document(",今天", "total"), Document(",今天,今天", "b"), Document("fox", "b")]
    rates = measure_categories((model, expanded), documents)
    processor = SentencePieceProcessor(model_proto=expanded.SerializeToString())
    after = [len(processor.encode(document.text)) for document in documents]
    assert list(rates.categories) == ["b", "total"]
    assert rates.categories["b"].after == after[1] + after[2] == rates.categories["b"].before - 2
    assert rates.total == Rate(3, 12, rates.total.before, sum(after))
    assert rates.content()["total"]["per_character_after"] == round(sum(after) / 12, 4)
    assert measure_categories((model, expanded), []).total == Rate(0, 0, 0, 0)
