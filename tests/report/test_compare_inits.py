"""The command: every way measured before and after training, by the project's own measure, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.errors import InputError
from colossal_llama2.model import init_model
from colossal_llama2.model.distilled_rows import DistillOptions
from colossal_llama2.report import compare_inits
from colossal_llama2.report.compare_inits import PLOT, RESULTS, CompareSettings, main
from colossal_llama2.report.evaluate import EvaluateSettings
from colossal_llama2.report.evaluate import main as evaluate
from colossal_llama2.report.evaluation import Score
from colossal_llama2.tokenizer.init_tokenizer import Settings as TokenizerSettings
from colossal_llama2.tokenizer.init_tokenizer import main as init_tokenizer

TEXTS = [
    "x今天天气很好 fox",
    "the quick fox jumps. 今天 天气",
    "今天 the 天气 is 天气",
    "天气很好，天气很好 今天 world",
]


def write(path: Path, texts: list[str]) -> Path:
    lines = (json.dumps({"source": "", "target": text, "category": "a"}) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path) -> Callable[..., CompareSettings]:
    """Give a function that makes settings for a tiny comparison, with what is to be different."""
    pieces = tmp_path / "pieces.jsonl"
    pieces.write_text("".join(json.dumps({"piece": piece}) + "\n" for piece in ("今天", "天气", "很好")))
    init_tokenizer(TokenizerSettings(tiny_model_dir, tmp_path / "tokenizer", pieces))

    def made(**changes: Any) -> CompareSettings:
        defaults: dict[str, Any] = {
            "source_model_and_tokenizer_path": tiny_model_dir,
            "target_tokenizer_path": tmp_path / "tokenizer",
            "data": (
                write(tmp_path / "chinese.jsonl", TEXTS[:2]),
                write(tmp_path / "english.jsonl", ["the quick fox"]),
            ),
            "output_dir": tmp_path / "out",
            "inits": ("random", "mean", "distilled", "weighted/distilled"),
            "distill": DistillOptions((write(tmp_path / "text.jsonl", TEXTS),), distill_steps=2, distill_length=30),
            "train_data": (write(tmp_path / "train.jsonl", TEXTS * 10),),
            "train_steps": 2,
            "train_rows": 2,
            "train_length": 32,
            "seeds": (1, 2),
            "work_dir": tmp_path / "work",
        }
        return CompareSettings(**{**defaults, **changes})

    return made


def test_all_ways_before_and_after(
    settings: Callable[..., CompareSettings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(settings())
    printed = capsys.readouterr().out
    measured = json.loads((tmp_path / "out" / RESULTS).read_text())["measured"]
    assert (tmp_path / "out" / PLOT).read_bytes().startswith(b"\x89PNG")
    found = [(one["way"], one["seed"], one["steps"]) for one in measured]
    ways = ("random", "mean", "distilled", "weighted/distilled")
    assert found == [(None, 1, 0), *((way, seed, steps) for way in ways for seed in (1, 2) for steps in (0, 2))]
    bits = {key: one["scores"]["chinese.jsonl"]["bits_per_byte"] for key, one in zip(found, measured, strict=True)}
    assert bits["mean", 1, 0] == bits["mean", 2, 0]
    for way in ("random", "distilled"):
        assert bits[way, 1, 0] != bits[way, 2, 0]
    for way in ways:
        assert bits[way, 1, 0] != bits[way, 1, 2]
        assert way in printed

    models = [tmp_path / "work" / "mean-2" / "model", tmp_path / "work" / "mean-2" / "trained" / "modeling"]
    evaluate(EvaluateSettings(tuple(models), (tmp_path / "chinese.jsonl",), output=tmp_path / "scores.json"))
    again = [one["bits_per_byte"] for one in json.loads((tmp_path / "scores.json").read_text())["scores"]]
    assert again == pytest.approx([bits["mean", 2, 0], bits["mean", 2, 2]])


def test_without_training(settings: Callable[..., CompareSettings], tmp_path: Path) -> None:
    main(settings(inits=("mean",), distill=DistillOptions(), train_data=(), seeds=(5,), work_dir=None))
    measured = json.loads((tmp_path / "out" / RESULTS).read_text())["measured"]
    assert [(one["way"], one["seed"], one["steps"]) for one in measured] == [(None, 5, 0), ("mean", 5, 0)]
    assert not (tmp_path / "work").exists()
    with pytest.raises(InputError, match="pass --overwrite"):
        main(settings(inits=("mean",), distill=DistillOptions(), train_data=()))


def test_models_that_are_not_kept_do_not_pile_up(
    settings: Callable[..., CompareSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []

    def init(made: init_model.Settings) -> None:
        kept.append(sum(1 for _ in made.target_model_path.parent.parent.iterdir()))
        made.target_model_path.mkdir(parents=True)

    monkeypatch.setattr(init_model, "main", init)
    monkeypatch.setattr(compare_inits, "_scored", lambda folder, texts, settings: {"a.jsonl": Score(1, 1, 1, 1, 1.0)})
    main(settings(inits=("mean", "weighted"), distill=DistillOptions(), train_data=(), work_dir=None))
    assert kept == [0, 0, 0, 0]


def test_mistakes_cost_no_time(settings: Callable[..., CompareSettings], tmp_path: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=match):
            main(settings(**changes))
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "work").exists()

    refused("--inits median; write mean, weighted", inits=("mean", "median"))
    refused("--inits mean/auto", inits=("mean/auto",))
    refused("nothing to do", inits=())
    refused("holds a model", output_dir=settings().source_model_and_tokenizer_path, overwrite=True)
    refused("without --distill_corpus", distill=DistillOptions())
    refused("must be 1 or more", train_steps=0)
    refused("no such file", train_data=(tmp_path / "absent.jsonl",))
    (tmp_path / "more").mkdir()
    refused("have one name", data=(tmp_path / "chinese.jsonl", tmp_path / "more" / "chinese.jsonl"))
