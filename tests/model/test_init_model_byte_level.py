"""Rows for an expanded byte-level tokenizer whose special tokens lie between the old tokens and the new."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from colossal_llama2.model.init_model import Settings as ModelSettings
from colossal_llama2.model.init_model import main as init_model
from colossal_llama2.tokenizer.init_tokenizer import Settings as TokenizerSettings
from colossal_llama2.tokenizer.init_tokenizer import main as init_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Give a model whose tokenizer has 300 learned tokens, 10 special ones behind, and 2 rows of padding."""
    folder = tmp_path / "source"
    tokenizer = Tokenizer(BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dogs and bold wizards"] * 3, trainer)
    tokenizer.add_special_tokens([f"<|{i}|>" for i in range(10)])
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.get_vocab_size() + 2, **sizes)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|0|>", "eos_token": "<|1|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_new_rows_are_means_and_special_rows_untouched(source: Path, tmp_path: Path) -> None:
    pieces, tokenizer, target = tmp_path / "pieces.jsonl", tmp_path / "tokenizer", tmp_path / "target"
    pieces.write_text(
        "".join(json.dumps({"piece": piece}) + "\n" for piece in ("今天", "天", "▁foxes")), encoding="utf-8"
    )
    base = Tokenizer.from_file(str(source / "tokenizer.json"))
    num_old = base.get_vocab_size()
    init_tokenizer(TokenizerSettings(source, tokenizer, pieces))
    init_model(ModelSettings(source, tokenizer, target, pad_to_multiple_of=8))
    before, after = (load_file(folder / "model.safetensors") for folder in (source, target))
    vocab = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab()
    new = {token: index for token, index in vocab.items() if index >= num_old}
    assert len(new) > 3  # with what is in between
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(after[name][:num_old], before[name][:num_old])
        assert len(after[name]) % 8 == 0
        for token, index in new.items():
            cut = [part.id for part in base.model.tokenize(token)]
            assert torch.allclose(after[name][index].double(), before[name][cut].double().mean(0), atol=1e-6)
    model, auto = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    ids = auto("今天 foxes", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 2)
    assert torch.isfinite(model(ids).logits).all()
    assert auto.convert_tokens_to_ids("<|9|>") == num_old - 1
