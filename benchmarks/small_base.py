"""A small base model, really trained by the project: English in pieces of its own, Chinese through bytes.

It knows some Chinese in its old tokens, as Llama-2 does, so that a teacher of new tokens has something to teach.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama2.jsonl import read_jsonl

ROOT = Path(__file__).resolve().parents[1]
ENGLISH_PIECES = 2048
CONTEXT = 512
_SEED = 1
LANGUAGES = {"chinese": "zh", "english": "en"}
# Of 40 documents: 1 is held out, the Chinese that the base learns from, and what is left to adapt it with.
_EVERY, _BASE_CHINESE = 40, range(1, 15)


@dataclass(frozen=True)
class Texts:
    """Where the pieces of the corpus lie, by what they are for: files of pretraining records.

    Attributes:
        held_out: by language, seen by no training.
        base: what the base model learns from.
        adaptation: Chinese that the base has not seen, and a little English to replay.
    """

    held_out: dict[str, Path]
    base: dict[str, Path]
    adaptation: dict[str, Path]


def split_texts(data: Path, folder: Path, most_held_out: int) -> Texts:
    """Divide ``DATA/pretrain`` document by document; no document is in two parts.

    Args:
        data: holds ``pretrain/zh`` and ``pretrain/en``, jsonl of source, target and category.
        folder: where the parts go.
        most_held_out: bytes of each language that are kept to score models on.
    """
    texts = Texts({}, {}, {})
    for language, name in LANGUAGES.items():
        files = sorted((data / "pretrain" / name).glob("*.jsonl"))
        parts: dict[str, list[dict[str, Any]]] = {"held_out": [], "base": [], "adaptation": []}
        left = dict.fromkeys((path.stem for path in files), most_held_out // len(files))
        for number, (category, record) in enumerate((path.stem, record) for path in files for record in _records(path)):
            place, length = number % _EVERY, len(record["target"].encode())
            if place == 0:
                if length <= left[category]:
                    parts["held_out"].append(record)
                    left[category] -= length
            elif place in _BASE_CHINESE if language == "chinese" else place % 8:
                parts["base"].append(record)
            else:
                parts["adaptation"].append(record)
        for kind, records in parts.items():
            path = folder / kind / f"{language}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            path.write_text("".join(lines), encoding="utf-8")
            getattr(texts, kind)[language] = path
    return texts


def make_base(texts: Texts, folder: Path, steps: int, tied: bool) -> Path:
    """Make tokenizer and random model, and train it with the project's own commands.

    Args:
        texts: of `split_texts`.
        folder: where everything goes.
        steps: of 4,096 tokens.
        tied: make embedding and output head one matrix.

    Returns:
        The model's folder; one that an earlier call made is taken as it is.
    """
    kind = "tied" if tied else "untied"
    tokenizer, random_model, trained = folder / "tokenizer", folder / f"random-{kind}", folder / f"base-{kind}"
    if (trained / "modeling").is_dir():
        return trained / "modeling"
    if not tokenizer.is_dir():
        _make_tokenizer(texts.base["english"], tokenizer)
        _prepare(texts, tokenizer, folder / "corpus")
    _make_random_model(tokenizer, random_model, tied)
    run(
        "train.py",
        *("--pretrained", random_model, "--dataset", folder / "corpus", "--save_dir", trained),
        *("--plugin", "ddp", "--mixed_precision", "fp32", "--max_length", CONTEXT, "--micro_batch_size", 8),
        *("--max_steps", steps, "--num_epochs", 100, "--lr", 3e-3, "--warmup_steps", 50, "--seed", _SEED),
        *("--save_interval", 0, "--log_interval", 100),
    )
    return trained / "modeling"


def run(script: str, *arguments: object) -> None:
    """Run one of the project's commands."""
    subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], check=True)


def _records(path: Path) -> Iterable[dict[str, Any]]:
    return (record for _, record in read_jsonl(path))


def _make_tokenizer(english: Path, folder: Path) -> None:
    import sentencepiece

    folder.mkdir(parents=True)
    lines = [line for record in _records(english) for line in (record["source"] + record["target"]).splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines[::4]),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=ENGLISH_PIECES,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _prepare(texts: Texts, tokenizer: Path, folder: Path) -> None:
    run(
        "tools/prepare_pretrain_dataset.py",
        *("--data_input_dirs", ",".join(map(str, texts.base.values())), "--tokenizer_dir", tokenizer),
        *("--data_cache_dir", folder.with_name("cache"), "--data_jsonl_output_dir", folder.with_name("jsonl")),
        *("--data_arrow_output_dir", folder, "--max_length", CONTEXT, "--num_spliced_dataset_bins", 4),
        *("--num_workers", 1),
    )


def _make_random_model(tokenizer: Path, folder: Path, tied: bool) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(_SEED)
    config = LlamaConfig(
        vocab_size=ENGLISH_PIECES,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
