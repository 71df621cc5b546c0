"""Write the folder of an expanded byte-level tokenizer: ``tokenizer.json`` and the settings of the source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from colossal_llama2.tokenizer.byte_level_closing import ClosedMerges
from colossal_llama2.tokenizer.byte_level_model import ByteLevelModel
from colossal_llama2.tokenizer.folder import (
    ADDED_TOKENS_FILE,
    CONFIG_FILE,
    JSON_FILE,
    SPECIAL_TOKENS_FILE,
    TEMPLATE_FILE,
    TokenizerFolder,
)
from colossal_llama2.tokenizer.writing import DROPPED_SETTINGS, write_json

_COPIED: Final = (SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE, TEMPLATE_FILE, "chat_template.json")
_OLDER: Final = ("vocab.json", "merges.txt")


def expanded_content(model: ByteLevelModel, closed: ClosedMerges) -> dict[str, Any]:
    """Return the ``tokenizer.json`` of a base with new tokens and merges behind all it has.

    The base's added tokens are written into the vocabulary too, at the ids they have. `tokenizers` numbers an added
    token that is not there anew on every load, behind the vocabulary: it would come after the new tokens.
    """
    vocab = {**model.vocab, **{text: index for index, text in model.added.items()}}
    for index, token in enumerate(closed.tokens, model.num_tokens):
        assert token not in vocab, "a new token has no id yet"
        vocab[token] = index
    merges = [*model.content["model"]["merges"], *map(list, closed.merges)]
    return {**model.content, "model": {**model.content["model"], "vocab": vocab, "merges": merges}}


def to_tokenizer(content: dict[str, Any]) -> Tokenizer:
    """Make a tokenizer of the content of a ``tokenizer.json``."""
    return Tokenizer.from_str(json.dumps(content))


def write_byte_level(target: Path, source: TokenizerFolder, content: dict[str, Any]) -> list[str]:
    """Fill an empty folder with a tokenizer that `tokenizers` and transformers read alike.

    ``vocab.json`` and ``merges.txt``, the older spelling of the same, are not written: two files that say one thing
    can come to say two.

    Args:
        target: the folder.
        source: the folder whose settings, added tokens and chat template are kept.
        content: the expanded ``tokenizer.json``.

    Returns:
        The names of the source's files of the older spelling, which are left behind.
    """
    to_tokenizer(content).save(str(target / JSON_FILE))
    kept = {name: value for name, value in source.settings.items() if name not in DROPPED_SETTINGS}
    # A class named after a model builds normalizer and pre-tokenizer of its own on load (Qwen2Tokenizer also forgets
    # ignore_merges); of this one the file's are kept.
    settings = {"clean_up_tokenization_spaces": False, **kept, "tokenizer_class": "PreTrainedTokenizerFast"}
    # Llama's forward takes no token_type_ids, which this class would otherwise add.
    settings.setdefault("model_input_names", ["input_ids", "attention_mask"])
    write_json(target / CONFIG_FILE, settings)
    for name in _COPIED:
        if (source.path / name).is_file():
            shutil.copyfile(source.path / name, target / name)
    return [name for name in _OLDER if (source.path / name).is_file()]
