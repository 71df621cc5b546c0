"""The SentencePiece model file as pieces with an id, a text, a score and a type."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from colossal_llama2.errors import InputError

NORMAL: Final = 1
UNKNOWN: Final = 2
CONTROL: Final = 3
USER_DEFINED: Final = 4
UNUSED: Final = 5
BYTE: Final = 6

SPACE_MARK: Final = "\u2581"
"""The character SentencePiece writes for a space, and puts before a text when it adds a dummy prefix."""

LARGEST_EXACT: Final = 2**24
"""Up to here float32, in which the file keeps scores, holds every whole number."""

MODEL_TYPES: Final = {1: "Unigram", 2: "BPE", 3: "Word", 4: "Char"}

PieceModel = Any
"""A `ModelProto`: `pieces` (piece, score, type), `trainer_spec` and `normalizer_spec`."""


def read_piece_model(path: Path) -> PieceModel:
    """Read a ``tokenizer.model``.

    Raises:
        InputError: the file cannot be read or is not a SentencePiece model.
    """
    try:
        raw = path.read_bytes()
        SentencePieceProcessor(model_proto=raw)  # knows more ways of being broken than the format does
        return parse_piece_model(raw)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None
    except (ValueError, RuntimeError):
        raise InputError(
            "not a SentencePiece model",
            path=path,
            remedy="give the tokenizer.model of the model, complete and unchanged",
        ) from None


def parse_piece_model(raw: bytes) -> PieceModel:
    """Parse the bytes of a model file; raises ValueError where they are not one with pieces in it."""
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(raw)
    except Exception as error:  # protobuf's DecodeError is not importable from one fixed place across its versions
        raise ValueError("not a SentencePiece model") from error
    if not model.pieces:
        raise ValueError("not a SentencePiece model")
    return model


def is_bpe(model: PieceModel) -> bool:
    """Tell whether the model builds its pieces by merging (byte-pair encoding)."""
    return bool(model.trainer_spec.model_type == 2)


def require_bpe(model: PieceModel, path: Path) -> None:
    """Refuse a model of another algorithm than BPE.

    Raises:
        InputError: the model is Unigram, Word or Char.
    """
    if not is_bpe(model):
        kind = MODEL_TYPES.get(model.trainer_spec.model_type, "unknown")
        raise InputError(f"a SentencePiece model of type {kind}", path=path, remedy="only BPE models are supported")


def has_identity_normalizer(model: PieceModel) -> bool:
    """Tell whether text reaches the pieces unchanged, apart from what happens to spaces."""
    return not model.normalizer_spec.precompiled_charsmap


def is_far_below(entry: Any) -> bool:
    """Tell whether a piece is a run of spaces that merges after everything else: Llama-2 gives them the score -1e9.

    Scores below those would be 64 apart at least, all that float32 has there, so new ones go above.
    """
    return bool(entry.score < -LARGEST_EXACT and not entry.piece.strip(SPACE_MARK))


def halves(piece: str) -> Iterator[tuple[str, str]]:
    """Yield every (left, right) into which a piece can be cut; both are non-empty."""
    for cut in range(1, len(piece)):
        yield piece[:cut], piece[cut:]


def piece_ids(model: PieceModel) -> dict[str, int]:
    """Map every piece's text to its id."""
    return {entry.piece: index for index, entry in enumerate(model.pieces)}


def as_text(piece: str) -> str:
    """Write a piece as the text it stands for: the space mark is a space."""
    return piece.replace(SPACE_MARK, " ")


def demote_markers(model: PieceModel, markers: set[str]) -> None:
    """Turn user-defined pieces that a tokenizer's settings call special into control pieces, in place.

    SentencePiece cuts a user-defined piece out of any text; a chat marker must never come out of a document that
    only quotes it.
    """
    for entry in model.pieces:
        if entry.type == USER_DEFINED and entry.piece in markers:
            entry.type = CONTROL
