"""Is one tokenizer another one plus tokens behind it, and how does the smaller one cut the new tokens?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.byte_level_model import add_named_tokens
from colossal_llama2.tokenizer.encoder import EncodedTexts
from colossal_llama2.tokenizer.folder import JSON_FILE, MODEL_FILE, TokenizerFolder, read_folder
from colossal_llama2.tokenizer.loading import read_fast, read_model, tokens_beyond
from colossal_llama2.tokenizer.piece_model import CONTROL, NORMAL, USER_DEFINED, PieceModel, as_text
from colossal_llama2.tokenizer.reachability import processor_without_prefix

_MODEL_OPTIONS: Final = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)
"""What else than vocabulary and merges decides how a ``tokenizer.json`` cuts text."""


@dataclass(frozen=True)
class Extension:
    """A tokenizer that begins with all of another one's tokens.

    Attributes:
        num_base: tokens of the smaller one; their ids are the same in both.
        num_tokens: tokens of the larger one.
        base_tokens: for each new token, in order of id, the ids into which the smaller one cuts its text (without
            the dummy prefix); no list is empty.
    """

    num_base: int
    num_tokens: int
    base_tokens: EncodedTexts


def read_extension(base_dir: Path, extended_dir: Path) -> Extension:
    """Hold two tokenizer folders against each other.

    Raises:
        InputError: the second is not an extension of the first: a token or its type differs, the merges come in
            another order, text is normalised otherwise, or the two are of different kinds.
    """
    base, extended = read_folder(base_dir), read_folder(extended_dir)
    if (base.model_file is None) != (extended.model_file is None):
        without, other = (base, extended) if base.model_file is None else (extended, base)
        raise InputError(
            f"holds no {MODEL_FILE}, but {other.path} does, so the two cannot be compared",
            path=without.path,
            remedy=f"put the {MODEL_FILE} it was made from there (transformers drops it on saving)",
        )
    return _pieces_extension(base, extended) if base.model_file else _json_extension(base, extended)


def _pieces_extension(base: TokenizerFolder, extended: TokenizerFolder) -> Extension:
    base_model, extended_model = read_model(base), read_model(extended)
    for what in ("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces", "precompiled_charsmap"):
        if getattr(base_model.normalizer_spec, what) != getattr(extended_model.normalizer_spec, what):
            raise _not_an_extension(extended, base, f"{what} differs")
    for what in ("model_type", "byte_fallback"):
        if getattr(base_model.trainer_spec, what) != getattr(extended_model.trainer_spec, what):
            raise _not_an_extension(extended, base, f"{what} differs")
    base_tokens, extended_tokens = _typed_tokens(base, base_model), _typed_tokens(extended, extended_model)
    _require_same_start(base, extended, base_tokens, extended_tokens)
    before, after = (_merge_order(model, base_model) for model in (base_model, extended_model))
    if not np.array_equal(before, after):
        raise _not_an_extension(extended, base, "the merges come in another order")
    texts = [as_text(text) for text, _ in extended_tokens[len(base_tokens) :]]
    parts = processor_without_prefix(base_model).encode(texts, out_type="numpy") if texts else []
    return _extension(len(base_tokens), len(extended_tokens), list(parts))


def _json_extension(base: TokenizerFolder, extended: TokenizerFolder) -> Extension:
    base_fast, extended_fast = (add_named_tokens(read_fast(folder), folder) for folder in (base, extended))
    base_json, extended_json = json.loads(base_fast.to_str()), json.loads(extended_fast.to_str())
    for what in ("normalizer", "pre_tokenizer"):
        if base_json[what] != extended_json[what]:
            raise _not_an_extension(extended, base, f"{what} differs")
    for what in _MODEL_OPTIONS:
        if base_json["model"].get(what) != extended_json["model"].get(what):
            raise _not_an_extension(extended, base, f"{what} differs")
    base_tokens, extended_tokens = _numbered(base_fast, base), _numbered(extended_fast, extended)
    _require_same_start(base, extended, base_tokens, extended_tokens)
    merges, more_merges = _merges(base_json, base), _merges(extended_json, extended)
    known = set(merges)
    if [merge for merge in more_merges if merge in known] != merges:
        raise _not_an_extension(extended, base, "the merges come in another order")
    added = {token.content for token in extended_fast.get_added_tokens_decoder().values()}
    parts = []
    for text, _ in extended_tokens[len(base_tokens) :]:
        if text in added:
            ids = base_fast.encode(text, add_special_tokens=False).ids
        else:  # already in the alphabet of bytes, which only the merges themselves read
            ids = [token.id for token in base_fast.model.tokenize(text)]
        parts.append(np.array(ids, dtype=np.int32))
    return _extension(len(base_tokens), len(extended_tokens), parts)


def _extension(num_base: int, num_tokens: int, parts: list[npt.NDArray[np.int32]]) -> Extension:
    assert all(len(part) for part in parts), "every text has tokens"
    offsets = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    return Extension(num_base, num_tokens, EncodedTexts(ids, offsets))


def _typed_tokens(folder: TokenizerFolder, model: PieceModel) -> list[tuple[str, int]]:
    """List every token with its type; one beyond the pieces counts as the control piece it becomes on expansion."""
    beyond = tokens_beyond(folder, model)
    for expected, token in enumerate(beyond, len(model.pieces)):
        if token.id != expected:
            raise InputError(f"no token has id {expected}, but {token.content!r} has {token.id}", path=folder.path)
    return [(entry.piece, entry.type) for entry in model.pieces] + [(token.content, CONTROL) for token in beyond]


def _numbered(fast: Tokenizer, folder: TokenizerFolder) -> list[tuple[str, int]]:
    """List every token by id with its type: an added token, which text may or may not give, or one of the merges."""
    added = fast.get_added_tokens_decoder()
    tokens = sorted((index, text) for text, index in fast.get_vocab(with_added_tokens=True).items())
    for expected, (index, text) in enumerate(tokens):
        if index != expected:
            raise InputError(
                f"no token has id {expected}, but {text!r} has {index}",
                path=folder.path,
                remedy="give a tokenizer numbered without gaps",
            )
    return [(text, _type_of(added.get(index))) for index, text in tokens]


def _type_of(token: AddedToken | None) -> int:
    if token is None:
        return NORMAL
    return CONTROL if token.special else USER_DEFINED


def _merges(content: dict[str, Any], folder: TokenizerFolder) -> list[tuple[str, str]]:
    if content["model"]["type"] != "BPE":
        raise InputError(f"a tokenizer of type {content['model']['type']}", path=folder.path / JSON_FILE)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in content["model"]["merges"]]
    return [(str(left), str(right)) for left, right in pairs]


def _require_same_start(
    base: TokenizerFolder,
    extended: TokenizerFolder,
    base_tokens: list[tuple[str, int]],
    extended_tokens: list[tuple[str, int]],
) -> None:
    if len(extended_tokens) < len(base_tokens):
        raise _not_an_extension(extended, base, f"it has {len(extended_tokens)} tokens, fewer than {len(base_tokens)}")
    for index, (old, new) in enumerate(zip(base_tokens, extended_tokens, strict=False)):
        if old != new:
            what = f"{new[0]!r} instead of {old[0]!r}" if old[0] != new[0] else f"{old[0]!r} of another type"
            raise _not_an_extension(extended, base, f"token {index} is {what}")


def _merge_order(model: PieceModel, base_model: PieceModel) -> npt.NDArray[np.int64]:
    """Return the ids of the base's normal pieces in the order in which `model` merges them."""
    ids = np.array([index for index, entry in enumerate(base_model.pieces) if entry.type == NORMAL], dtype=np.int64)
    scores = np.array([model.pieces[int(index)].score for index in ids])
    return ids[np.argsort(-scores, kind="stable")]


def _not_an_extension(extended: TokenizerFolder, base: TokenizerFolder, why: str) -> InputError:
    return InputError(
        f"not an extension of the tokenizer in {base.path}: {why}",
        path=extended.path,
        remedy="expand the model's own tokenizer with init_tokenizer",
    )
