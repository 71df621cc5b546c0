"""A tiny Llama with its tokenizer, and the same tokenizer expanded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama2.tokenizer.init_tokenizer import Settings as TokenizerSettings
from colossal_llama2.tokenizer.init_tokenizer import main as init_tokenizer
from colossal_llama2.tokenizer.loading import load_encoder

NEW_PIECES = ["今天", "天气", "▁今天", "天气很好", "foxdog", "quickbrown"]


@pytest.fixture(scope="session")
def expanded_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_dir: Path) -> Path:
    """Give the tiny tokenizer expanded by `NEW_PIECES`. Read only."""
    folder = tmp_path_factory.mktemp("expanded")
    pieces = folder / "pieces.jsonl"
    pieces.write_text("".join(json.dumps({"piece": piece}) + "\n" for piece in NEW_PIECES), encoding="utf-8")
    init_tokenizer(TokenizerSettings(llama_tokenizer_dir, folder / "tokenizer", pieces))
    return folder / "tokenizer"


@pytest.fixture
def make_model(tmp_path: Path, llama_tokenizer_dir: Path) -> Callable[..., Path]:
    """Give a function that saves a tiny random Llama with its tokenizer under a name."""

    def made(name: str = "model", spare_rows: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
        shard_size = options.pop("max_shard_size", "1GB")
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=load_encoder(llama_tokenizer_dir).num_tokens + spare_rows,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            **options,
        )
        folder = tmp_path / name
        LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size=shard_size)
        shutil.copytree(llama_tokenizer_dir, folder, dirs_exist_ok=True)
        return folder

    return made
