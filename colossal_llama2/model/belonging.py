"""Does a model folder's tokenizer belong to its weights?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from colossal_llama2.errors import InputError
from colossal_llama2.model.embedding_names import find_embeddings
from colossal_llama2.model.weights import find_weights, read_json
from colossal_llama2.tokenizer.folder import JSON_FILE, MODEL_FILE
from colossal_llama2.tokenizer.loading import load_encoder, tokenizer_fingerprint

CONFIG_FILE: Final = "config.json"
FINGERPRINT_KEY: Final = "tokenizer_fingerprint"
FINGERPRINT_FILE_KEY: Final = "tokenizer_fingerprint_of"
# Published models pad their rows by up to 2,385 (DeepSeek, 102,400 rows for 100,015 tokens).
_MOST_SPARE_ROWS: Final = 4096


def check_belongs(model_dir: Path) -> None:
    """Refuse a model folder whose tokenizer does not fit its configuration and its rows.

    Where `init_model` has written the tokenizer's fingerprint into ``config.json``, the tokenizer must have it. In any
    case the embedding must have a row for every token, and not many more.

    Raises:
        InputError: the folder is not a model with a tokenizer, or the two do not belong together.
    """
    if not model_dir.is_dir():
        raise InputError("no such folder", path=model_dir, remedy="give the folder of a model")
    config = read_config(model_dir)
    num_tokens = load_encoder(model_dir).num_tokens
    weights = find_weights(model_dir)
    locations = weights.locations()
    names = find_embeddings(model_dir, locations)
    # a quantised head is stored as bytes, which say nothing of its rows
    rows = {name: locations[name][1][0] for name in names.all if locations[name][2] != "U8"}
    declared = vocab_size(config)
    for name, count in rows.items():
        if count != declared:
            raise InputError(
                f"{name} has {count} rows, config.json says vocab_size {declared}",
                path=model_dir,
                remedy="fetch the model again",
            )
    if not num_tokens <= declared <= num_tokens + max(_MOST_SPARE_ROWS, num_tokens // 20):
        raise InputError(
            f"the tokenizer has {num_tokens} tokens, the model {declared} rows; they do not belong together",
            path=model_dir,
            remedy="give the model its own tokenizer, or make rows for a new one with init_model",
        )
    _check_fingerprint(model_dir, config)


def fingerprint_entries(tokenizer_dir: Path) -> dict[str, str]:
    """Return what `init_model` writes into ``config.json`` so that `check_belongs` can tell the tokenizer again."""
    return {
        FINGERPRINT_KEY: tokenizer_fingerprint(tokenizer_dir),
        FINGERPRINT_FILE_KEY: _deciding_file(tokenizer_dir),
    }


def read_config(model_dir: Path) -> dict[str, Any]:
    """Read a model's ``config.json``.

    Raises:
        InputError: there is none, or it holds no ``vocab_size``.
    """
    path = model_dir / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"holds no {CONFIG_FILE}", path=model_dir, remedy="give a folder saved by transformers")
    config = read_json(path)
    vocab_size(config, path)
    return config


def vocab_size(config: dict[str, Any], path: Path | None = None) -> int:
    """Return the number of rows a configuration declares; of a multimodal one, its text part's.

    Raises:
        InputError: it declares none.
    """
    for section in (config, config.get("text_config") or {}):
        if isinstance(section.get("vocab_size"), int):
            return int(section["vocab_size"])
    raise InputError("declares no vocab_size", path=path, remedy="give a language model's folder")


def _check_fingerprint(model_dir: Path, config: dict[str, Any]) -> None:
    expected = config.get(FINGERPRINT_KEY)
    # transformers' save_pretrained drops tokenizer.model; what it leaves has another hash and the same ids.
    if expected is None or config.get(FINGERPRINT_FILE_KEY) not in (None, _deciding_file(model_dir)):
        return
    if tokenizer_fingerprint(model_dir) != expected:
        raise InputError(
            "the tokenizer is another one than the model's rows were made for",
            path=model_dir,
            remedy="copy the files of the right tokenizer here, or run init_model with this one",
        )


def _deciding_file(tokenizer_dir: Path) -> str:
    return MODEL_FILE if (tokenizer_dir / MODEL_FILE).is_file() else JSON_FILE
