"""A tokenizer, a model and a corpus so small that a training step takes milliseconds; made in a second or two."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

_WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "vex",
    "quietly",
    "bold",
    "journeys",
    "through",
    "towns",
]
_PIECES = 320


def make_model_and_corpus(folder: Path, max_length: int = 48, documents: int = 160) -> tuple[Path, Path]:
    """Make a random Llama of two layers, its tokenizer inside, and a corpus of some dozens of rows.

    Returns:
        The model's folder and the corpus's.
    """
    from colossal_llama2.dataset.prepare_pretrain_dataset import PrepareSettings
    from colossal_llama2.dataset.prepare_pretrain_dataset import main as prepare

    model = folder / "model"
    _make_tokenizer(model)
    _make_model(model, max_length)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(_WORDS, k=draw.choice([2, 5, 9, 30]))) for _ in range(documents)]
    records = [json.dumps({"source": "", "target": text, "category": "a"}) for text in texts]
    (folder / "in.jsonl").write_text("\n".join(records), encoding="utf-8")
    prepare(
        PrepareSettings(
            data_input_dirs=str(folder / "in.jsonl"),
            tokenizer_dir=model,
            data_cache_dir=folder / "cache",
            data_jsonl_output_dir=folder / "jsonl",
            data_arrow_output_dir=folder / "arrow",
            max_length=max_length,
            num_spliced_dataset_bins=3,
            num_workers=1,
        )
    )
    return model, folder / "arrow"


def _make_tokenizer(folder: Path) -> None:
    import sentencepiece

    folder.mkdir(parents=True)
    draw = random.Random(1)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(draw.choices(_WORDS, k=8)) for _ in range(400)]),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=_PIECES,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _make_model(folder: Path, max_length: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=_PIECES, max_position_embeddings=max_length, initializer_range=0.2, **sizes)
    work = folder.with_name("weights")
    LlamaForCausalLM(config).save_pretrained(work)
    for path in work.iterdir():
        shutil.move(path, folder / path.name)
    work.rmdir()
