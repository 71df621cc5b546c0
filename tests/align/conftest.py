"""Small sets of conversations and of compared answers, and a way to train on them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.dataset.preparation import MixOptions, PrepareSettings, SpliceOptions, WorkOptions
from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings
from colossal_llama2.dataset.prepare_dataset import main as prepare
from colossal_llama2.dataset.prepare_pretrain_dataset import main as prepare_corpus
from colossal_llama2.engine import ranks
from colossal_llama2.engine.plugins import PluginName, PluginSettings, Precision
from colossal_llama2.engine.session import AdamSettings, Session
from colossal_llama2.model.pretrained import load_for_training

_WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "today", "weather", "language"]


def _said(draw: random.Random, most: int) -> str:
    return " ".join(draw.choice(_WORDS) for _ in range(draw.randint(1, most)))


def _prepare(work: Path, kind: Any, tokenizer_dir: Path, records: list[dict[str, Any]], **options: Any) -> Path:
    source = work / f"{kind}.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    prepare(
        PrepareSetSettings(
            **{
                "type": kind,
                "data_input_dirs": str(source),
                "tokenizer_dir": tokenizer_dir,
                "data_arrow_output_dir": work / kind,
                "chat_template": "llama2",
                "max_length": 64,
                "holdout": "20%",
                "num_spliced_dataset_bins": 2,
                "num_workers": 1,
                **options,
            }
        )
    )
    return work / kind


@pytest.fixture(scope="session")
def sft_dir(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_dir: Path) -> Path:
    """Give a set of conversations: rows of up to 64 tokens in 2 parts, and a holdout."""
    draw = random.Random(0)
    records = [
        {
            "messages": [
                {"role": ("user", "assistant")[turn % 2], "content": _said(draw, 6)} for turn in range(2 + 2 * (n % 2))
            ]
        }
        for n in range(80)
    ]
    return _prepare(tmp_path_factory.mktemp("sft"), "sft", llama_tokenizer_dir, records)


@pytest.fixture(scope="session")
def other_sft_dir(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_dir: Path) -> Path:
    """Give a set of conversations that another chat template wrote."""
    said = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}]
    work = tmp_path_factory.mktemp("other")
    template = "transcript"
    return _prepare(
        work,
        "sft",
        llama_tokenizer_dir,
        [{"messages": said}] * 4,
        chat_template=template,
        holdout="0",
        num_spliced_dataset_bins=1,
    )


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_dir: Path) -> Path:
    """Give a tiny pretraining corpus."""
    work = tmp_path_factory.mktemp("corpus")
    records = [{"source": "", "target": "the quick brown fox", "category": "a"}] * 8
    (work / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    prepare_corpus(
        PrepareSettings(
            data_input_dirs=str(work / "in.jsonl"),
            tokenizer_dir=llama_tokenizer_dir,
            data_cache_dir=work / "cache",
            data_jsonl_output_dir=work / "jsonl",
            data_arrow_output_dir=work / "arrow",
            splicing=SpliceOptions(max_length=48),
            mix=MixOptions(num_spliced_dataset_bins=1),
            work=WorkOptions(num_workers=1),
        )
    )
    return work / "arrow"


@pytest.fixture(scope="session")
def preference_dir(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_dir: Path) -> Path:
    """Give a set of compared answers, two to four to a prompt, some of them equally good, and a holdout."""
    draw = random.Random(1)
    records = [
        {
            "prompt": _said(draw, 4),
            "responses": [_said(draw, 5) for _ in range(2 + n % 3)],
            "ranks": [0, 1, 1, 2][: 2 + n % 3],
        }
        for n in range(60)
    ]
    return _prepare(tmp_path_factory.mktemp("preference"), "preference", llama_tokenizer_dir, records)


@pytest.fixture(scope="session")
def align_on(tiny_model_dir: Path, run_train: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function that runs a stage on a number of ranks and a set; `model_dir` is the tiny Llama."""

    def run(
        ranks: int, stage: str, dataset: Path, save_dir: Path, *flags: object, model_dir: Path = tiny_model_dir
    ) -> Any:
        base = ["--stage", stage, "--pretrained", model_dir, "--dataset", dataset, "--save_dir", save_dir]
        return run_train(ranks, save_dir, *base, "--max_length", 64, "--save_interval", 0, "--log_interval", 1, *flags)

    return run


@pytest.fixture
def one_rank() -> Iterator[None]:
    """Make a process group of this process alone."""
    ranks.launch(seed=0)
    yield
    ranks.close()


@pytest.fixture
def boosted(one_rank: None, tiny_model_dir: Path) -> Callable[..., Session]:
    """Give a function that boosts the tiny Llama, as train.py would."""

    def boost(plugin: PluginName = "zero2", precision: Precision = "fp32", model: Any = None) -> Session:
        model = load_for_training(tiny_model_dir, precision, False) if model is None else model
        groups = [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": 0.0}]
        return Session(PluginSettings(plugin, precision), model, groups, AdamSettings(lr=1e-3), lambda step: 1.0)

    return boost


@pytest.fixture(scope="session")
def plain_align_flags(parity_reference: Any) -> list[object]:
    """Give the flags under which a stage does what the reference in plain PyTorch does, in steps of four rows."""
    plain = parity_reference
    numbers = {"lr": plain.LR, "warmup_steps": plain.WARMUP, "adam_eps": plain.EPS, "seed": plain.SEED}
    steps = ["--max_steps", plain.PlainSteps().steps]
    return [*steps, *(part for name, value in numbers.items() for part in (f"--{name}", value))]
