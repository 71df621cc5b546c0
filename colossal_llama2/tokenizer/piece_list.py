"""The list of wanted pieces: read, and sorted into new, existing, repeated and refused with a reason."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sentencepiece import SentencePieceProcessor

from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import read_jsonl, string_field
from colossal_llama2.tokenizer.piece_model import NORMAL, SPACE_MARK, USER_DEFINED, PieceModel, as_text

MAX_PIECE_CHARACTERS: Final = 128
"""Longer pieces are refused: no word is that long, and a list that holds one was cut wrongly."""


@dataclass(frozen=True)
class WantedPiece:
    """A piece and the line of the list it stands on."""

    piece: str
    line: int


@dataclass(frozen=True)
class RefusedPiece:
    """A piece that is not added, its line, and why."""

    piece: str
    line: int
    reason: str


@dataclass(frozen=True)
class SortedPieces:
    """A piece list held against a tokenizer; every line of the list is in exactly one of the four.

    Attributes:
        new: to be added, in list order.
        existing: the tokenizer has them already.
        repeated: they stood earlier in the list.
        refused: they cannot be pieces of this tokenizer.
    """

    new: tuple[str, ...]
    existing: tuple[str, ...]
    repeated: tuple[str, ...]
    refused: tuple[RefusedPiece, ...]


def read_piece_list(path: Path) -> list[WantedPiece]:
    """Read a piece list: jsonl, one ``{"piece": "..."}`` a line.

    Raises:
        InputError: the file cannot be read, holds no piece, or a line is not a record with a ``piece``.
    """
    wanted = [WantedPiece(string_field(record, "piece", path, line), line) for line, record in read_jsonl(path)]
    if not wanted:
        raise InputError("holds no piece", path=path, remedy='write one {"piece": "..."} a line')
    return wanted


def sort_pieces(wanted: Iterable[WantedPiece], model: PieceModel, markers: Iterable[str]) -> SortedPieces:
    """Sort wanted pieces into new, existing, repeated and refused.

    Args:
        wanted: the list.
        model: the SentencePiece model they are to be added to.
        markers: texts of special and added tokens, which no piece may contain.
    """
    vocabulary = {entry.piece for entry in model.pieces if entry.type in (NORMAL, USER_DEFINED)}
    judge = _Judge(model, markers)
    seen: set[str] = set()
    new: list[str] = []
    existing, repeated, refused = [], [], []
    for item in wanted:
        reason = judge.objection(item.piece)
        if item.piece in seen:
            repeated.append(item.piece)
        elif item.piece in vocabulary:
            existing.append(item.piece)
        elif reason:
            refused.append(RefusedPiece(item.piece, item.line, reason))
        else:
            new.append(item.piece)
        seen.add(item.piece)
    return SortedPieces(tuple(new), tuple(existing), tuple(repeated), tuple(refused))


class _Judge:
    """Says why a text cannot be a piece of a given model, looking at the text alone."""

    def __init__(self, model: PieceModel, markers: Iterable[str]) -> None:
        reserved = {entry.piece for entry in model.pieces if entry.type not in (NORMAL, USER_DEFINED)}
        self._markers = sorted({*reserved, *markers}, key=len)
        self._cut_out = [entry.piece for entry in model.pieces if entry.type == USER_DEFINED]
        self._processor = SentencePieceProcessor(model_proto=model.SerializeToString())

    def objection(self, piece: str) -> str | None:
        """Return the reason, or None where there is none."""
        if not piece:
            return "empty"
        if len(piece) > MAX_PIECE_CHARACTERS:
            return f"{len(piece)} characters long, more than {MAX_PIECE_CHARACTERS}"
        if not piece.replace(SPACE_MARK, " ").strip():
            return "whitespace only"
        control = next((character for character in piece if unicodedata.category(character) in ("Cc", "Cn")), None)
        if control is not None:
            return f"holds the control or unassigned character U+{ord(control):04X}"
        marker = next((marker for marker in self._markers if marker in piece), None)
        if marker is not None:
            return f"holds the text of the special token {marker}"
        whole = next((whole for whole in self._cut_out if whole in piece), None)
        if whole is not None:
            return f"holds the user-defined piece {whole}, which is cut out of every text and never merged"
        normalized = self._processor.normalize(as_text(piece))
        if piece not in (normalized, normalized.removeprefix(SPACE_MARK)):
            return f"text never looks like this after normalisation, which gives {normalized}"
        return None
