"""Tiny byte-level tokenizers of three families, trained here, and a second implementation to hold them against."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN = _LLAMA3.replace("{1,3}", "")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_WORDS = "the quick brown fox jumps over a lazy dog while seven wizards vex bold journeys through many old towns"
_TEXT = [
    *(" ".join(_WORDS.split()[(i * j) % 19] for j in range(1, 9)) + "." for i in range(1, 200)),
    *("今天天气很好我们学习"[i % 10] for i in range(20)),
    *(f"def f{i}(x):\n    return  x * {i * 37}\t# café naïve {i}" for i in range(60)),
]

FAMILIES = ("gpt2", "llama3", "qwen")


@pytest.fixture(scope="session")
def make_byte_level(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give a function that makes the folder of one family's tokenizer, each once. Read only."""
    known: dict[str, Path] = {}

    def made(family: str) -> Path:
        if family not in known:
            known[family] = tmp_path_factory.mktemp(family)
            _make(family, known[family])
        return known[family]

    return made


def _make(family: str, folder: Path) -> None:
    tokenizer = Tokenizer(BPE(ignore_merges=family == "llama3"))
    if family == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        pattern = Regex(_LLAMA3 if family == "llama3" else _QWEN)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(pattern, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if family == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>"] if family == "gpt2" else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    config: dict[str, Any] = {"gpt2": _gpt2, "llama3": _llama3, "qwen": _qwen}[family](tokenizer, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 512, **config}), encoding="utf-8")


def _gpt2(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    end = "<|endoftext|>"
    return {"tokenizer_class": "GPT2Tokenizer", "bos_token": end, "eos_token": end, "add_prefix_space": False}


def _llama3(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    tokenizer.add_special_tokens([begin, end, *(f"<|reserved_special_token_{i}|>" for i in range(6))])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin}:1 $B:1",
        special_tokens=[(begin, tokenizer.token_to_id(begin))],
    )
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": end,
        "chat_template": template,
    }


def _qwen(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    added = {
        str(index): {"content": token.content, "special": token.special, "normalized": False}
        for index, token in tokenizer.get_added_tokens_decoder().items()
    }
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<|im_end|>", encoding="utf-8")
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
    }


class PlainByteLevel:
    """Byte-level BPE in plain Python, from the file alone; special tokens in a text are text, others are found."""

    def __init__(self, folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        self.vocab: dict[str, int] = content["model"]["vocab"]
        self.ranks = {tuple(merge): rank for rank, merge in enumerate(content["model"]["merges"])}
        self.ignore_merges = content["model"]["ignore_merges"]
        self.composes = bool(content["normalizer"]) and content["normalizer"]["type"] == "NFC"
        steps = content["pre_tokenizer"].get("pretokenizers", [])
        pattern = steps[0]["pattern"]["Regex"] if steps else _GPT2
        # The engine of `tokenizers` means Unicode's White_Space, that of `regex` a few separators more.
        self.words = regex.compile(pattern.replace(r"\s", r"\p{White_Space}").replace(r"\S", r"\P{White_Space}"))
        others = [token["content"] for token in content["added_tokens"] if not token["special"]]
        self.others = regex.compile("|".join(map(regex.escape, others)) or r"(?!)")
        self.added = {token["content"]: token["id"] for token in content["added_tokens"]}
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        rest = [byte for byte in range(256) if byte not in printable]
        self.letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        at = 0
        for found in [*self.others.finditer(text), None]:
            part = text[at : found.start() if found else len(text)]
            if self.composes:
                part = unicodedata.normalize("NFC", part)
            for word in self.words.findall(part):
                ids += self._merged("".join(self.letters[byte] for byte in word.encode()))
            if found:
                ids.append(self.added[found.group()])
                at = found.end()
        return ids

    def _merged(self, word: str) -> list[int]:
        if self.ignore_merges and word in self.vocab:
            return [self.vocab[word]]
        parts = list(word)
        while True:
            pairs = [(self.ranks.get((parts[i], parts[i + 1]), len(self.ranks)), i) for i in range(len(parts) - 1)]
            rank, at = min(pairs, default=(len(self.ranks), 0))
            if rank == len(self.ranks):
                return [self.vocab[part] for part in parts]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.fixture(scope="session")
def plain_byte_level() -> Callable[[Path], PlainByteLevel]:
    """Give the second implementation: called with a folder, it encodes as the folder's file says."""
    return PlainByteLevel
