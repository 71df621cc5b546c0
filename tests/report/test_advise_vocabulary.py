"""Advice: counts that are SentencePiece's own, costs by hand, a verdict that follows from them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from colossal_llama2 import cli
from colossal_llama2.report import advise_vocabulary
from colossal_llama2.report.advice import Measured, advise
from colossal_llama2.report.advise_vocabulary import AdviceSettings, main
from colossal_llama2.report.vocabulary_cost import LLAMA_2_7B, ModelSize, vocabulary_cost
from colossal_llama2.tokenizer.compression_rate import CompressionRate

TEXTS = ["今天天气很好。" * 9, "今天很冷", "天气很冷很冷"]
PIECES = ["今天", "天气", "很好", "很冷"]


@pytest.fixture
def settings(tmp_path: Path, llama_tokenizer_dir: Path) -> AdviceSettings:
    (tmp_path / "zh.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "en.txt").write_text("the quick brown fox\n" * 30)
    (tmp_path / "pieces.jsonl").write_text("".join(json.dumps({"piece": piece}) + "\n" for piece in PIECES))
    return AdviceSettings(
        corpus=(tmp_path / "zh.jsonl",),
        source_tokenizer_dir=llama_tokenizer_dir,
        output_dir=tmp_path / "advice",
        keep=(tmp_path / "en.txt",),
        pieces=tmp_path / "pieces.jsonl",
        sizes="2,4",
        tokenizers=(llama_tokenizer_dir,),
    )


def test_counts_are_sentencepieces_and_old_text_costs_what_it_did(
    settings: AdviceSettings, llama_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(settings)
    content = json.loads((settings.output_dir / "advice.json").read_text())
    processor = SentencePieceProcessor(model_file=str(llama_tokenizer_dir / "tokenizer.model"))
    tokens = sum(len(processor.encode(text)) for text in TEXTS)
    base, *larger = content["sizes"]
    assert (base["wanted"], base["new_text"]["tokens"]) == (0, tokens)
    assert base["new_text"]["characters"] == sum(map(len, TEXTS))
    assert [entry["wanted"] for entry in larger] == [2, 4]
    assert base["new_text"]["tokens"] > larger[0]["new_text"]["tokens"] > larger[1]["new_text"]["tokens"]
    assert [entry["old_text"]["tokens"] for entry in larger] == [base["old_text"]["tokens"]] * 2
    assert [entry["added"] for entry in larger] == [2, 4]
    assert 0.5 < larger[1]["used"] <= 1.0
    [peer] = content["tokenizers"]
    assert peer["tokens_per_document"] == round(tokens / len(TEXTS), 3)
    assert (settings.output_dir / "advice.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert content["verdict"] in said
    assert said.count("\n") >= 6


@pytest.mark.long
def test_pieces_are_mined_and_measured_on_other_documents(
    settings: AdviceSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"今天天气很好{number % 17}。" * (number % 5 + 1) for number in range(200)]
    (tmp_path / "zh.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    main(replace(settings, pieces=None, sizes="3"))
    content = json.loads((settings.output_dir / "advice.json").read_text())
    assert content["measured_on"] == "held-out tenth of the corpus"
    base, larger = content["sizes"]
    assert 0 < base["documents"] < 100
    assert larger["new_text"]["tokens"] < base["new_text"]["tokens"]


def test_costs_are_what_the_formula_says() -> None:
    size = ModelSize("hand", hidden=10, body=1000, matrices=2)
    cost = vocabulary_cost(size, num_tokens=50, tokens_per_byte=0.5)
    assert cost.parameters == 2 * 50 * 10
    assert cost.bytes == 2 * cost.parameters
    assert cost.generation == 0.5 * 1_000_000 * 2 * (1000 + 50 * 10)
    assert cost.training == 3 * cost.generation
    assert LLAMA_2_7B.body + LLAMA_2_7B.vocabulary_parameters(32_000) == 6_738_415_616


def measured(wanted: int, tokens: int, used: float = 1.0) -> Measured:
    num_tokens = 32_000 + wanted
    rate = CompressionRate(tokens, 1000, 3000)
    cost = vocabulary_cost(LLAMA_2_7B, num_tokens, rate.tokens_per_byte)
    return Measured(wanted, wanted, 0, num_tokens, rate, None, 10, used, cost)


def test_the_smallest_size_is_taken_that_no_larger_one_undercuts_by_much() -> None:
    base = measured(0, 1000)
    assert advise([base, measured(5000, 700), measured(10000, 600), measured(40000, 598)]).startswith("Take 10,000")
    assert advise([base, measured(5000, 999)]).startswith("No size saves")
    assert "Only 50%" in advise([base, measured(5000, 500, used=0.5)])


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"sizes": "many"}, "is no list of numbers"),
        ({"sizes": "0"}, "--sizes"),
        ({"corpus": (Path("gone"),)}, "gone: no such file"),
        ({"model": Path("gone")}, "not a model folder"),
        ({"pieces": Path("gone.jsonl")}, "gone.jsonl: cannot be read"),
    ],
)
def test_mistakes_are_one_line(
    changed: dict[str, Any],
    complaint: str,
    settings: AdviceSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["advise"])
    monkeypatch.setattr(cli, "parse", lambda *_: replace(settings, **changed))
    codes: list[int] = []
    cli.run(AdviceSettings, advise_vocabulary.main, leave=codes.append)
    assert codes == [2]
    assert complaint in capsys.readouterr().err
    assert not settings.output_dir.exists()
