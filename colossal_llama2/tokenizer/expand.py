"""Model plus pieces gives model: the arithmetic of an expansion, without files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from colossal_llama2.tokenizer.folder import MarkerToken
from colossal_llama2.tokenizer.piece_model import CONTROL, NORMAL, SPACE_MARK, PieceModel, parse_piece_model

_LARGEST_EXACT: Final = 2**24
"""Up to here float32, in which the file keeps scores, holds every whole number."""


def expand_model(model: PieceModel, pieces: Sequence[str], beyond: Sequence[MarkerToken] = ()) -> PieceModel:
    """Return a copy of a BPE model with pieces added behind its own; no id, score or type of the base changes.

    Args:
        model: the base.
        pieces: new pieces, in list order; they are added shorter first, so that of two overlapping ones the shorter,
            commoner one is merged first.
        beyond: the source's added tokens that stand behind the base's pieces. They become control pieces at the ids
            they have (a document never produces them), and new pieces come after them.

    The new scores are unique and below every base merge, so the base's merges all happen first and in their order.
    """
    expanded = parse_piece_model(model.SerializeToString())
    for token in beyond:
        assert token.id == len(expanded.pieces), "added tokens follow the pieces without a gap"
        expanded.pieces.add(piece=token.content, score=0.0, type=CONTROL)
    ordered = sorted(pieces, key=len)  # stable: list order among pieces of one length
    for piece, score in zip(ordered, new_scores(model, len(ordered)), strict=True):
        expanded.pieces.add(piece=piece, score=float(score), type=NORMAL)
    assert len({entry.piece for entry in expanded.pieces}) == len(expanded.pieces), "every piece stands once"
    expanded.trainer_spec.vocab_size = len(expanded.pieces)
    return expanded


def new_scores(model: PieceModel, count: int) -> npt.NDArray[np.float32]:
    """Return `count` falling scores, all different in float32 and below every merge of the base.

    Runs of space marks do not count as merges here: Llama-2 gives them -1e9, where float32 has one value in 64.
    """
    scores = [entry.score for entry in model.pieces if entry.type == NORMAL and entry.piece.strip(SPACE_MARK)]
    lowest = np.floor(min(scores, default=0.0))
    step = 1.0
    while abs(lowest) + step * (count + 1) > _LARGEST_EXACT * step:
        step *= 2
    # A step is the spacing of float32 there, or twice that where rounding the first value needs room.
    result = (lowest - step * np.arange(1, count + 1)).astype(np.float32)
    assert count == 0 or (result[0] < np.float32(lowest) and bool(np.all(np.diff(result) < 0))), "scores must fall"
    return result
