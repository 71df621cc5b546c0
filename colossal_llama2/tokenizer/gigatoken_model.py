"""A tokenizer written so that gigatoken reads it and takes no special token out of a text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from tokenizers import Tokenizer, pre_tokenizers

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.fast import ranked_merges, require_repeatable
from colossal_llama2.tokenizer.piece_model import BYTE, NORMAL, SPACE_MARK, USER_DEFINED, PieceModel, as_text


class UnfitError(Exception):
    """gigatoken cannot be trusted with a tokenizer, and why."""


@dataclass(frozen=True)
class GigatokenModel:
    """What gigatoken is given, and what it must not be given.

    Attributes:
        content: a ``tokenizer.json`` without added tokens: all text is text.
        aside: a regular expression (RE2) for texts that hold a token which is cut out of any text; the reference
            encodes them. None where there is no such token.
        markers: texts that are tokens to the tokenizer and must be none to gigatoken.
        has_byte_fallback: characters without a piece become bytes, as in SentencePiece; else all text is bytes.
    """

    content: str
    aside: str | None
    markers: tuple[str, ...]
    has_byte_fallback: bool


def from_piece_model(model: PieceModel, path: Path) -> GigatokenModel:
    """Write a SentencePiece model for gigatoken.

    Control and unknown pieces are left out: SentencePiece never finds them in a text. gigatoken's own reading of the
    model would find them.

    Raises:
        UnfitError: the model does something that gigatoken does not do, or not exactly.
    """
    try:
        require_repeatable(model, path)
    except InputError as error:
        raise UnfitError(error.what) from None
    spec = model.normalizer_spec
    if spec.remove_extra_whitespaces or not spec.escape_whitespaces:
        raise UnfitError("the model removes spaces, or does not mark them")
    if sum(entry.type == BYTE for entry in model.pieces) != 256:
        raise UnfitError("the model has no piece for every byte")
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}]
    if spec.add_dummy_prefix:
        steps.insert(0, {"type": "Prepend", "prepend": SPACE_MARK})
    content = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "model": {
            "type": "BPE",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {entry.piece: index for index, entry in enumerate(model.pieces) if entry.type in (NORMAL, BYTE)},
            "merges": ranked_merges(model),
        },
    }
    cut_out = (entry.piece for entry in model.pieces if entry.type == USER_DEFINED)
    return GigatokenModel(
        orjson.dumps(content).decode(),
        "|".join(_as_typed(piece) for piece in cut_out) or None,
        tuple(entry.piece for entry in model.pieces if entry.type not in (NORMAL, BYTE)),
        has_byte_fallback=True,
    )


def from_fast(tokenizer: Tokenizer) -> GigatokenModel:
    """Write a `tokenizers` tokenizer for gigatoken.

    Raises:
        UnfitError: it is no byte-pair encoding, or finds tokens in a changed text, where they cannot be looked for.
    """
    content = json.loads(tokenizer.to_str())
    if content["model"]["type"] != "BPE" or content["model"].get("dropout"):
        raise UnfitError("the tokenizer is not plain byte-pair encoding")
    cut_out = [token for token in content["added_tokens"] if not token["special"]]
    if content["normalizer"] is not None and any(token["normalized"] for token in cut_out):
        raise UnfitError("added tokens are looked for in a text that was changed before")
    markers = tuple(token["content"] for token in content["added_tokens"])
    content.update(added_tokens=[], post_processor=None, decoder=None, truncation=None, padding=None)
    return GigatokenModel(
        orjson.dumps(content).decode(),
        "|".join(re.escape(token["content"]) for token in cut_out) or None,
        markers,
        bool(content["model"].get("byte_fallback")),
    )


def pieces_and_merges(model: GigatokenModel) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the texts of a model's pieces, and of the halves of its merges in their order.

    Pieces that are no text by themselves, such as half a character, are left out.
    """
    content = json.loads(model.content)["model"]
    if model.has_byte_fallback:
        texts = {token: "" if _is_byte(token) else as_text(token) for token in content["vocab"]}
    else:
        to_byte = {letter: value for value, letter in _byte_letters()}
        texts = {token: _from_bytes(token, to_byte) for token in content["vocab"]}
    halves = (merge.split(" ") if isinstance(merge, str) else merge for merge in content["merges"])
    merges = ((texts.get(left, ""), texts.get(right, "")) for left, right in halves)
    return [text for text in texts.values() if text], [(left, right) for left, right in merges if left and right]


def _as_typed(piece: str) -> str:
    """Match a piece in a text as it is before spaces are marked."""
    return "".join(f"[ {SPACE_MARK}]" if letter == SPACE_MARK else re.escape(letter) for letter in piece)


def _is_byte(token: str) -> bool:
    return re.fullmatch("<0x[0-9A-F]{2}>", token) is not None


def _byte_letters() -> Iterator[tuple[int, str]]:
    """Yield each byte and the letter that stands for it in a byte-level vocabulary.

    Printable bytes stand for themselves; the others are the code points from 256 on, in order (GPT-2's table).
    """
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    spare = iter(sorted(letter for letter in letters if ord(letter) > 255))
    for value in range(256):
        yield value, chr(value) if chr(value) in letters else next(spare)


def _from_bytes(token: str, to_byte: dict[str, int]) -> str:
    """Return what a byte-level token stands for, empty if that is no text by itself."""
    try:
        return bytes(to_byte[letter] for letter in token).decode()
    except (KeyError, UnicodeDecodeError):
        return ""
