"""Write a tokenizer folder: SentencePiece model, our own fast tokenizer of the same ids, settings of the source."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from colossal_llama2.tokenizer.folder import (
    CONFIG_FILE,
    JSON_FILE,
    MODEL_FILE,
    SPECIAL_TOKENS_FILE,
    TEMPLATE_FILE,
    MarkerToken,
    TokenizerFolder,
)
from colossal_llama2.tokenizer.piece_model import PieceModel

DROPPED_SETTINGS: Final = (
    "auto_map",
    "backend",
    "is_local",
    "legacy",
    "name_or_path",
    "add_prefix_space",
    "slow_tokenizer_class",
    "sp_model_kwargs",
    "special_tokens_map_file",
    "tokenizer_file",
    "vocab_file",
    "use_fast",
)
"""Settings that name a class, its way of converting or the source's own paths; they would undo what is written."""


def write_tokenizer(
    target: Path, source: TokenizerFolder, model: PieceModel, fast: Tokenizer, named: dict[str, str]
) -> None:
    """Fill an empty folder with a tokenizer that SentencePiece and transformers read alike.

    Args:
        target: the folder.
        source: the folder whose settings, added tokens and chat template are kept.
        model: the SentencePiece model.
        fast: its conversion, written as ``tokenizer.json``.
        named: the special tokens by name.
    """
    (target / MODEL_FILE).write_bytes(model.SerializeToString())
    fast.save(str(target / JSON_FILE))
    write_json(target / CONFIG_FILE, _settings(source, named, fast))
    write_json(target / SPECIAL_TOKENS_FILE, named)
    template = source.path / TEMPLATE_FILE
    if template.is_file():
        shutil.copyfile(template, target / TEMPLATE_FILE)


def _settings(source: TokenizerFolder, named: dict[str, str], fast: Tokenizer) -> dict[str, Any]:
    kept = {name: value for name, value in source.settings.items() if name not in DROPPED_SETTINGS}
    if isinstance(source.chat_template, str) and not (source.path / TEMPLATE_FILE).is_file():
        kept["chat_template"] = source.chat_template
    special = {*named.values(), *source.extra_special_tokens}
    added = [token for token in fast.get_added_tokens_decoder().items() if token[1].content]
    decoder = {
        str(index): _as_entry(
            MarkerToken(
                index,
                token.content,
                special=token.special or token.content in special,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                single_word=token.single_word,
                normalized=token.normalized,
            )
        )
        for index, token in sorted(added)
    }
    return {
        "clean_up_tokenization_spaces": False,
        **kept,
        **named,
        # transformers 5 replaces the normalizer of any class named after a model; of this one it keeps the file's.
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Llama's forward takes no token_type_ids, which this class would otherwise add.
        "model_input_names": ["input_ids", "attention_mask"],
        "add_bos_token": source.adds("bos") and "bos_token" in named,
        "add_eos_token": source.adds("eos") and "eos_token" in named,
        "added_tokens_decoder": decoder,
    }


def _as_entry(token: MarkerToken) -> dict[str, Any]:
    entry = dataclasses.asdict(token)
    del entry["id"]
    return entry


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object as transformers does: two spaces, a final line break."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
