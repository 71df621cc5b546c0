"""A piece list held against a byte-level tokenizer: which pieces are new, and which its text can never show."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from colossal_llama2.tokenizer.byte_level_model import ByteLevelModel, to_letters
from colossal_llama2.tokenizer.piece_list import MAX_PIECE_CHARACTERS, RefusedPiece, SortedPieces, WantedPiece
from colossal_llama2.tokenizer.piece_model import SPACE_MARK, as_text


def sort_byte_level(wanted: Iterable[WantedPiece], model: ByteLevelModel, markers: Iterable[str]) -> SortedPieces:
    """Sort wanted pieces into new, existing, repeated and refused.

    A list is written as for SentencePiece: ``▁`` is a space wherever it stands, and a plain space is refused, so that
    one list means the same to both kinds of tokenizer.

    Args:
        wanted: the list.
        model: the tokenizer they are to be added to.
        markers: texts of special and added tokens, which no piece may contain.
    """
    texts = sorted({*markers, *model.added.values()}, key=len)
    written = set(model.added.values())
    seen: set[str] = set()
    new, existing, repeated, refused = [], [], [], []
    for item in wanted:
        reason = _objection(item.piece, model, texts)
        letters = to_letters(as_text(item.piece))
        if item.piece in seen:
            repeated.append(item.piece)
        elif letters in model.vocab and letters not in written and " " not in item.piece:
            existing.append(item.piece)
        elif reason or letters in written:
            reason = reason or "is written in bytes as an added token is in letters"
            refused.append(RefusedPiece(item.piece, item.line, reason))
        else:
            new.append(item.piece)
        seen.add(item.piece)
    return SortedPieces(tuple(new), tuple(existing), tuple(repeated), tuple(refused))


def _objection(piece: str, model: ByteLevelModel, markers: Iterable[str]) -> str | None:
    """Say why a text can never be a token, or None where nothing is against it."""
    text = as_text(piece)
    if not piece:
        return "empty"
    if len(piece) > MAX_PIECE_CHARACTERS:
        return f"{len(piece)} characters long, more than {MAX_PIECE_CHARACTERS}"
    if not text.strip():
        return "whitespace only"
    if " " in piece:
        return f"holds a space, which a piece writes as {SPACE_MARK}"
    control = next((character for character in piece if unicodedata.category(character) in ("Cc", "Cn", "Cs")), None)
    if control is not None:
        return f"holds the control or unassigned character U+{ord(control):04X}"
    marker = next((marker for marker in markers if marker in text), None)
    if marker is not None:
        return f"holds the text of the special token {marker}"
    normalized = model.normalize(text)
    if normalized != text:
        return f"text never looks like this after normalisation, which gives {normalized}"
    return _cut_reason(text, model)


def _cut_reason(text: str, model: ByteLevelModel) -> str | None:
    """Ask the tokenizer's own pre-tokenizer whether the text stays in one word, which merges never leave."""
    letters = to_letters(text)
    words = model.fast.pre_tokenizer.pre_tokenize_str(text)
    if any(letters in word for word, _ in words):
        return None
    return f"the pre-tokenizer cuts it into {' and '.join(repr(text[begin:end]) for _, (begin, end) in words)}"
