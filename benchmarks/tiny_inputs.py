"""A model of a few thousand parameters and a corpus for it, made in seconds: for measurements without real text."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

SENTENCE = "the quick brown fox jumps over a lazy dog while seven wizards vex quietly bold journeys 今天 天气 很好 语言"
WORDS = SENTENCE.split()


def make_tiny_inputs(
    folder: Path, max_length: int = 48, num_records: int = 160, dtype: str = "float32", **config: Any
) -> tuple[Path, Path]:
    """Make a random Llama with a tokenizer of its own, and a prepared corpus.

    Args:
        folder: where they go.
        max_length: of the corpus's rows, in tokens.
        num_records: documents in it.
        dtype: of the weights.
        config: what is to be different in the model's configuration.

    Returns:
        The model's folder and the corpus's.
    """
    model_dir = folder / "model"
    _make_tokenizer(model_dir)
    _make_model(model_dir, dtype, config)
    return model_dir, _make_corpus(folder, model_dir, max_length, num_records)


def _make_tokenizer(folder: Path) -> None:
    import sentencepiece

    folder.mkdir(parents=True)
    draw = random.Random(0)
    sentences = [" ".join(draw.choice(WORDS) for _ in range(8)) for _ in range(300)]
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=writer,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(writer.getvalue())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _make_model(folder: Path, dtype: str, changes: dict[str, float]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
    torch.manual_seed(0)
    config = LlamaConfig(**{**sizes, **heads, "initializer_range": 0.2, **changes}, bos_token_id=1, eos_token_id=2)
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)


def _make_corpus(folder: Path, tokenizer_dir: Path, max_length: int, num_records: int) -> Path:
    from colossal_llama2.dataset.preparation import MixOptions, PrepareSettings, SpliceOptions, WorkOptions
    from colossal_llama2.dataset.prepare_pretrain_dataset import main

    draw = random.Random(1)
    records = [
        {"source": "", "target": " ".join(draw.choice(WORDS) for _ in range(draw.choice([5, 9, 30]))), "category": "a"}
        for _ in range(num_records)
    ]
    (folder / "in.jsonl").write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    main(
        PrepareSettings(
            data_input_dirs=str(folder / "in.jsonl"),
            tokenizer_dir=tokenizer_dir,
            data_cache_dir=folder / "cache",
            data_jsonl_output_dir=folder / "jsonl",
            data_arrow_output_dir=folder / "arrow",
            splicing=SpliceOptions(max_length=max_length),
            mix=MixOptions(num_spliced_dataset_bins=2),
            work=WorkOptions(num_workers=1),
        )
    )
    return folder / "arrow"
