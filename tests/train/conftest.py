"""A tiny prepared corpus, a tiny model, and a way to train on them with any number of ranks."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.dataset.preparation import MixOptions, PrepareSettings, SpliceOptions, WorkOptions
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
    prepare_corpus(work, llama_tokenizer_dir)
    return work / "arrow"


@pytest.fixture(scope="session")
def expanded(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Callable[..., tuple[Path, Path]]:
    """Give a function that returns a tiny model whose vocabulary was expanded, and a corpus for it; each made once."""
    from colossal_llama2.model import init_model
    from colossal_llama2.tokenizer import init_tokenizer

    work = tmp_path_factory.mktemp("expanded")
    pieces = ["今天", "天气", "很好", "我们", "学习", "语言", "▁quickbrown", "foxjumps"]
    (work / "pieces.jsonl").write_text("".join(json.dumps({"piece": piece}) + "\n" for piece in pieces))
    init_tokenizer.main(init_tokenizer.Settings(tiny_model_dir, work / "tokenizer", work / "pieces.jsonl"))
    prepare_corpus(work, work / "tokenizer")

    def made(dtype: str = "float32", tied: bool = False) -> tuple[Path, Path]:
        base, target = work / f"base-{dtype}-{tied}", work / f"model-{dtype}-{tied}"
        if not target.exists():
            save_tiny_model(base, tiny_model_dir, dtype, tied)
            init_model.main(init_model.Settings(base, work / "tokenizer", target))
        return target, work / "arrow"

    return made


def prepare_corpus(work: Path, tokenizer_dir: Path) -> None:
    """Prepare the corpus as `work`/arrow."""
    draw = random.Random(0)
    records = []
    for index in range(160):
        words = [draw.choice(WORDS) for _ in range(draw.choice([2, 5, 9, 30]))]
        source = "ask: " + draw.choice(WORDS) if index % 3 == 0 else ""
        records.append({"source": source, "target": " ".join(words), "category": ["a", "b"][index % 2]})
    (work / "in.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    settings = PrepareSettings(
        data_input_dirs=str(work / "in.jsonl"),
        tokenizer_dir=tokenizer_dir,
        data_cache_dir=work / "cache",
        data_jsonl_output_dir=work / "jsonl",
        data_arrow_output_dir=work / "arrow",
        splicing=SpliceOptions(max_length=48),
        mix=MixOptions(num_spliced_dataset_bins=3),
        work=WorkOptions(num_workers=1),
    )
    prepare(settings)


def save_tiny_model(folder: Path, like: Path, dtype: str, tied: bool) -> None:
    """Save the tiny Llama anew, in another dtype and tied if asked."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(like)
    config.tie_word_embeddings = tied
    AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).save_pretrained(folder)
    for path in like.iterdir():
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_dir: Path) -> Callable[..., Path]:
    """Give a function that makes a model to divide: 4 layers, 4 heads over 2, 641 rows (which 2 does not divide)."""
    known: dict[tuple[str, bool], Path] = {}

    def model_dir(kind: str, tied: bool = False) -> Path:
        if (kind, tied) not in known:
            folder = known[kind, tied] = tmp_path_factory.mktemp(kind)
            _make_model(folder, kind, tied)
            for path in llama_tokenizer_dir.iterdir():
                shutil.copyfile(path, folder / path.name)
        return known[kind, tied]

    return model_dir


def _make_model(folder: Path, kind: str, tied: bool) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 641, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    window = {"sliding_window": 8} if kind == "mistral" else {}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    config = AutoConfig.for_model(
        kind, **sizes, **heads, **window, **tokens, initializer_range=0.2, tie_word_embeddings=tied
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms of ones and biases of zeros would hide a lost one
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    model.save_pretrained(folder)


def spell_flags(model_dir: Path, corpus_dir: Path, save_dir: Path, flags: tuple[object, ...]) -> list[str]:
    """Spell the flags of train.py that every run here has in common, and then its own."""
    return [
        "--pretrained", str(model_dir),
        "--dataset", str(corpus_dir),
        "--max_length", "48",
        "--save_dir", str(save_dir),
        "--save_interval", "0",
        "--log_interval", "1",
        *map(str, flags),
    ]  # fmt: skip


@pytest.fixture
def train_command(tiny_model_dir: Path, corpus_dir: Path) -> Callable[..., list[str]]:
    """Give a function that spells the command line of train.py under torchrun for a number of ranks."""

    def command(ranks: int, save_dir: Path, *flags: object) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
        own = spell_flags(tiny_model_dir, corpus_dir, save_dir, flags)
        return [sys.executable, "-W", "ignore", *launcher, str(ROOT / "train.py"), *own]

    return command


@pytest.fixture(scope="session")
def train_on(tiny_model_dir: Path, corpus_dir: Path, run_train: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function that trains on a number of ranks and returns what came of it; `model_dir` is the tiny Llama."""

    def run(
        ranks: int, save_dir: Path, *flags: object, model_dir: Path = tiny_model_dir, corpus: Path = corpus_dir
    ) -> Any:
        return run_train(ranks, save_dir, *spell_flags(model_dir, corpus, save_dir, flags))

    return run


@pytest.fixture(scope="session")
def plain_curve(parity_reference: Any) -> Callable[..., list[tuple[float, float]]]:
    """Give a function that trains a model's parameter groups plainly; it returns (loss, gradient norm) a step.

    Five steps of four rows under `plain_flags`.
    """

    def train(model: Any, groups: list[dict[str, Any]], corpus_dir: Path) -> list[tuple[float, float]]:
        curve: list[tuple[float, float]] = parity_reference.train_plainly(
            model, groups, corpus_dir, parity_reference.PlainSteps()
        )
        return curve

    return train


@pytest.fixture(scope="session")
def plain_flags(parity_reference: Any) -> list[object]:
    """Give the flags under which train.py does what `plain_curve` does."""
    plain = parity_reference
    numbers = {"lr": plain.LR, "warmup_steps": plain.WARMUP, "adam_eps": plain.EPS, "seed": plain.SEED}
    steps = ["--max_steps", plain.PlainSteps().steps]
    return [*steps, *(part for name, value in numbers.items() for part in (f"--{name}", value))]
