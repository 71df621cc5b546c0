"""A tokenizer with the markers of chat templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer


@pytest.fixture(scope="session")
def marked_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, byte_level_tokenizer_dir: Path) -> Path:
    """Give the tiny byte-level tokenizer with the markers of ChatML and Llama-3 and tokens for thoughts. Read only."""
    folder = tmp_path_factory.mktemp("marked_tokenizer")
    tokenizer = Tokenizer.from_file(str(byte_level_tokenizer_dir / "tokenizer.json"))
    names = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
