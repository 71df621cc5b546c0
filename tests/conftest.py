"""Tiny tokenizers that every room's tests may use; trained here, in a second, from sentences written here."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

_WORDS = (
    "the quick brown fox jumps over a lazy dog while seven wizards vex quietly bold journeys through many old towns"
)
_HAN = "今天天气很好我们学习语言模型中国文字世界你好大小"


# `make test` tries the same examples every time, so that what it says is about the change at hand; `make test-long`
# looks for new ones.
hypothesis.settings.register_profile("known", derandomize=True)
hypothesis.settings.register_profile("exploring", print_blob=True)
hypothesis.settings.load_profile("known")

# A shell starts what it puts in the background with Ctrl-C ignored, and every process of a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Lift a test's limit on file sizes before its result is reported: the report may go to a file of its own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        return (yield)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what the toolkit remembers about tokenizers out of the user's own cache, in commands started too."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["COLOSSAL_LLAMA2_CACHE_DIR"] = str(folder)
    yield folder
    del os.environ["COLOSSAL_LLAMA2_CACHE_DIR"]


@pytest.fixture(autouse=True)
def broken_pipes_are_errors() -> Iterator[None]:
    """Put python's own handling back: a command run inside a test leaves pipes that break to kill the process."""
    yield
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def sentences() -> list[str]:
    """Return a few hundred English sentences with some Chinese, numbers and code; the same on every call."""
    words = _WORDS.split()
    english = [" ".join(words[(i * j) % len(words)] for j in range(1, 9)) + "." for i in range(1, 300)]
    chinese = [_HAN[i % len(_HAN)] + " " + _HAN[(i * 7) % len(_HAN)] for i in range(60)]
    code = [f"def f{i}(x):\n    return  x * {i * 37}\t# {i}" for i in range(60)]
    return english + chinese + code


def train_piece_model(**options: Any) -> bytes:
    """Train a SentencePiece model of about 600 pieces; by default of Llama's kind (BPE, bytes, identity)."""
    writer = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 600,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "character_coverage": 1.0,
        "num_threads": 1,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_writer=writer, **{**settings, **options}
    )
    return writer.getvalue()


@pytest.fixture(scope="session")
def piece_model_bytes() -> Callable[..., bytes]:
    """Give a function that trains a SentencePiece model with the options named, each combination once."""
    known: dict[str, bytes] = {}

    def trained(**options: Any) -> bytes:
        key = json.dumps(options, sort_keys=True)
        if key not in known:
            known[key] = train_piece_model(**options)
        return known[key]

    return trained


@pytest.fixture(scope="session")
def llama_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, piece_model_bytes: Callable[..., bytes]) -> Path:
    """Give a folder with a tiny tokenizer of Llama's kind: tokenizer.model and tokenizer_config.json. Read only."""
    folder = tmp_path_factory.mktemp("llama_tokenizer")
    (folder / "tokenizer.model").write_bytes(piece_model_bytes())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 512,
        "chat_template": "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def byte_level_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a tiny byte-level BPE tokenizer, as Llama-3 has: tokenizer.json alone. Read only."""
    folder = tmp_path_factory.mktemp("byte_level_tokenizer")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=500,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_dir: Path) -> Path:
    """Give a model folder: random Llama, 2 layers, 640 rows, 128 positions, the tiny tokenizer inside. Read only."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=640,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in llama_tokenizer_dir.iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.fixture(scope="session")
def tiny_adapter_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """Give an adapter that peft made on the tiny model: rank 4, alpha 8, every linear layer, random numbers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32), config)
    model.save_pretrained(folder)
    return folder


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


def load_benchmark(name: str) -> Any:
    """Import a module of benchmarks/ by its place: tests and benchmarks share it, and neither is a package's part."""
    specification = importlib.util.spec_from_file_location(
        name, Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look themselves up there
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def warm_ranks() -> Iterator[Any]:
    """Give ranks that have imported everything already: most of the seconds of a tiny run are imports."""
    with load_benchmark("warm_ranks").WarmRanks() as warm:
        yield warm


@pytest.fixture(scope="session")
def parity_reference() -> Any:
    """Give the one training loop in plain PyTorch that everything is compared with."""
    return load_benchmark("parity_reference")


@pytest.fixture(scope="session")
def run_train(warm_ranks: Any) -> Callable[..., TrainRun]:
    """Give a function that runs train.py on a number of ranks with the flags given, and returns what came of it."""

    def run(ranks: int, save_dir: Path, *flags: object) -> TrainRun:
        done = warm_ranks.run(ranks, flags)
        return TrainRun(done.code, done.output, save_dir)

    return run
