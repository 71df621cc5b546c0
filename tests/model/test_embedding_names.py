"""The tensors with one row a token are found in every architecture, as its checkpoint spells them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, GPT2Config, GPTJConfig, LlamaConfig

from colossal_llama2.errors import InputError
from colossal_llama2.model.embedding_names import EmbeddingNames, find_embeddings

SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
}


def saved(config: Any, folder: Path) -> Path:
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"])
@pytest.mark.parametrize("tied", [False, True])
def test_architectures(kind: str, tied: bool, tmp_path: Path) -> None:
    folder = saved(AutoConfig.for_model(kind, **SMALL, tie_word_embeddings=tied, pad_token_id=0), tmp_path)
    stored = {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    names = find_embeddings(folder, stored)
    both = frozenset({"model.embed_tokens.weight", "lm_head.weight"})
    expected = EmbeddingNames("model.embed_tokens.weight", None if tied else "lm_head.weight", None)
    assert names == replace(expected, tied=both if tied else frozenset())
    assert set(names.all) == stored


def test_a_tied_head_that_is_stored_counts_too(tmp_path: Path) -> None:
    folder = saved(LlamaConfig(**SMALL, tie_word_embeddings=True), tmp_path)
    assert find_embeddings(folder, {"lm_head.weight"}).all == ("lm_head.weight",)
    assert len(find_embeddings(folder, {"lm_head.weight", "model.embed_tokens.weight"}).all) == 2


def test_names_without_the_base_prefix_and_a_bias(tmp_path: Path) -> None:
    gpt2 = saved(GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=1), tmp_path / "gpt2")
    assert find_embeddings(gpt2, {"wte.weight", "wpe.weight"}).all == ("wte.weight",)
    gptj = saved(GPTJConfig(vocab_size=32, n_embd=8, n_layer=1, n_head=1, rotary_dim=4), tmp_path / "gptj")
    stored = {"transformer.wte.weight", "lm_head.weight", "lm_head.bias"}
    assert set(find_embeddings(gptj, stored).all) == stored


def test_an_embedding_that_is_not_stored_is_missed(tmp_path: Path) -> None:
    folder = saved(LlamaConfig(**SMALL), tmp_path)
    with pytest.raises(InputError, match="output head is not among the weights"):
        find_embeddings(folder, {"model.embed_tokens.weight"})
    with pytest.raises(InputError, match="input embedding is not among the weights"):
        find_embeddings(folder, {"lm_head.weight"})
