"""A tiny prepared corpus, a tiny model, and a way to train on them with any number of ranks."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.dataset.prepare_pretrain_dataset import PrepareSettings
from colossal_llama2.dataset.prepare_pretrain_dataset import main as prepare

ROOT = Path(__file__).parents[2]
WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "今天",
    "天气",
    "很好",
    "我们",
    "学习",
    "语言",
)


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_dir: Path) -> Path:
    """Give a prepared corpus: 64 rows of up to 48 tokens in 3 buckets, short and long documents, some with a source."""
    work = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    records = []
    for index in range(160):
        words = [draw.choice(WORDS) for _ in range(draw.choice([2, 5, 9, 30]))]
        source = "ask: " + draw.choice(WORDS) if index % 3 == 0 else ""
        records.append({"source": source, "target": " ".join(words), "category": ["a", "b"][index % 2]})
    (work / "in.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    settings = PrepareSettings(
        data_input_dirs=str(work / "in.jsonl"),
        tokenizer_dir=llama_tokenizer_dir,
        data_cache_dir=work / "cache",
        data_jsonl_output_dir=work / "jsonl",
        data_arrow_output_dir=work / "arrow",
        max_length=48,
        num_spliced_dataset_bins=3,
        num_workers=1,
    )
    prepare(settings)
    return work / "arrow"


@dataclass(frozen=True)
class TrainRun:
    """A finished run: its exit code, what it printed, and its metrics."""

    code: int
    output: str
    save_dir: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.save_dir / "run" / "metrics.jsonl").read_text().splitlines()]

    def curve(self) -> list[tuple[float, ...]]:
        """What must be equal between runs: step, loss, gradient norm, learning rate, tokens."""
        names = ("step", "loss", "grad_norm", "lr", "tokens")
        return [tuple(line[name] for name in names) for line in self.metrics]


@pytest.fixture
def train_command(tiny_model_dir: Path, corpus_dir: Path) -> Callable[..., list[str]]:
    """Give a function that spells the command line of train.py for a number of ranks."""

    def command(ranks: int, save_dir: Path, *flags: object) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
        return [
            sys.executable, "-W", "ignore", *launcher, str(ROOT / "train.py"),
            "--pretrained", str(tiny_model_dir),
            "--dataset", str(corpus_dir),
            "--max_length", "48",
            "--save_dir", str(save_dir),
            "--save_interval", "0",
            "--log_interval", "1",
            *map(str, flags),
        ]  # fmt: skip

    return command


@pytest.fixture
def train_on(train_command: Callable[..., list[str]]) -> Callable[..., TrainRun]:
    """Give a function that trains on a number of ranks and returns what came of it."""

    def run(ranks: int, save_dir: Path, *flags: object) -> TrainRun:
        done = subprocess.run(
            train_command(ranks, save_dir, *flags),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        return TrainRun(done.returncode, done.stdout, save_dir)

    return run
