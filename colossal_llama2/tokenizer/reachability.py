"""Which pieces can come out of a text at all, and what stands in the way of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sentencepiece import SentencePieceProcessor

from colossal_llama2.tokenizer.piece_model import NORMAL, PieceModel, as_text, halves, parse_piece_model


@dataclass(frozen=True)
class UnreachablePiece:
    """A piece whose own text is not encoded as that piece.

    Attributes:
        piece: the piece.
        id: its id.
        reason: no two pieces join to it, or another merge comes first.
        encoded_as: the pieces its text gives instead.
    """

    piece: str
    id: int
    reason: str
    encoded_as: tuple[str, ...]


def unreachable_pieces(model: PieceModel, ids: Sequence[int]) -> list[UnreachablePiece]:
    """Return those of the pieces `ids` whose text, taken alone and without dummy prefix, is encoded otherwise."""
    processor = processor_without_prefix(model)
    texts = [as_text(model.pieces[index].piece) for index in ids]
    if not texts:
        return []
    normal = {entry.piece for entry in model.pieces if entry.type == NORMAL}
    unreachable = []
    for index, encoded in zip(ids, processor.encode(texts, out_type="numpy"), strict=True):
        if encoded.tolist() != [index]:
            piece = model.pieces[index].piece
            reason = "another merge comes first" if _can_be_joined(piece, normal) else "no two pieces join to it"
            cut = tuple(model.pieces[int(part)].piece for part in encoded)
            unreachable.append(UnreachablePiece(piece, index, reason, cut))
    return unreachable


def processor_without_prefix(model: PieceModel) -> SentencePieceProcessor:
    """Return a processor that encodes text as it stands inside a sentence: no dummy prefix, no spaces removed."""
    inside = parse_piece_model(model.SerializeToString())
    inside.normalizer_spec.add_dummy_prefix = False
    inside.normalizer_spec.remove_extra_whitespaces = False
    return SentencePieceProcessor(model_proto=inside.SerializeToString())


def _can_be_joined(piece: str, normal: set[str]) -> bool:
    """Tell whether some order of merges builds the piece out of its characters."""
    known: dict[str, bool] = {}

    def buildable(part: str) -> bool:
        if part not in normal:
            return False
        if len(part) > 1 and part not in known:
            known[part] = any(buildable(left) and buildable(right) for left, right in halves(part))
        return known.get(part, True)

    return buildable(piece)
