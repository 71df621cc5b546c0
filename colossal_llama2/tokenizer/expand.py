"""Model plus pieces gives model: the arithmetic of an expansion, without files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from colossal_llama2.tokenizer.folder import MarkerToken
from colossal_llama2.tokenizer.piece_model import (
    CONTROL,
    LARGEST_EXACT,
    NORMAL,
    PieceModel,
    is_far_below,
    parse_piece_model,
)


def expand_model(
    model: PieceModel,
    pieces: Sequence[str],
    beyond: Sequence[MarkerToken] = (),
    merge_order: Sequence[str] | None = None,
) -> PieceModel:
    """Return a copy of a BPE model with pieces added behind its own; no id, score or type of the base changes.

    Args:
        model: the base.
        pieces: new pieces, in order of id.
        beyond: the source's added tokens that stand behind the base's pieces. They become control pieces at the ids
            they have (a document never produces them), and new pieces come after them.
        merge_order: the new pieces in the order in which they are merged; by default that of the ids.

    The new scores are unique and below every base merge, so the base's merges all happen first and in their order.
    """
    expanded = parse_piece_model(model.SerializeToString())
    for token in beyond:
        assert token.id == len(expanded.pieces), "added tokens follow the pieces without a gap"
        expanded.pieces.add(piece=token.content, score=0.0, type=CONTROL)
    ordered = pieces if merge_order is None else merge_order
    scores = dict(zip(ordered, new_scores(model, len(ordered)).tolist(), strict=True))
    for piece in pieces:
        expanded.pieces.add(piece=piece, score=scores[piece], type=NORMAL)
    assert len(scores) == len(pieces), "every new piece has a place among the merges"
    assert len({entry.piece for entry in expanded.pieces}) == len(expanded.pieces), "every piece stands once"
    expanded.trainer_spec.vocab_size = len(expanded.pieces)
    return expanded


def new_scores(model: PieceModel, count: int) -> npt.NDArray[np.float32]:
    """Return `count` falling scores, all different in float32 and below every merge of the base.

    Runs of spaces far below all other merges do not count, see `is_far_below`.
    """
    scores = [entry.score for entry in model.pieces if entry.type == NORMAL and not is_far_below(entry)]
    lowest = np.floor(min(scores, default=0.0))
    step = 1.0
    while abs(lowest) + step * (count + 1) > LARGEST_EXACT * step:
        step *= 2
    # A step is the spacing of float32 there, or twice that where rounding the first value needs room.
    result = (lowest - step * np.arange(1, count + 1)).astype(np.float32)
    assert count == 0 or (result[0] < np.float32(lowest) and bool(np.all(np.diff(result) < 0))), "scores must fall"
    return result
