"""Mining as a whole: the model's own byte-pair encoding, continued on a corpus until enough pieces earn their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from colossal_llama2.tokenizer.mining_core import mine
from colossal_llama2.tokenizer.mining_rules import CharacterKinds
from colossal_llama2.tokenizer.mining_start import Start, make_start
from colossal_llama2.tokenizer.mining_state import GONE, JOINABLE, Int64, Mine, Rules, Text, text_key
from colossal_llama2.tokenizer.piece_model import SPACE_MARK, PieceModel
from colossal_llama2.tokenizer.reachability import processor_without_prefix

_ROUNDS: Final = 3
"""How often useless pieces are taken out and others found in their place; each round costs as much as the first."""


@dataclass(frozen=True)
class MinedPieces:
    """New pieces in the order of their merges, and what they do to the documents they were mined from.

    Attributes:
        pieces: each is the join of two that the model has or that stand before it, or a character the model lacks.
        counts: [N, K] how often each comes out of the documents of each category.
        saved: [N] how many tokens of the model its uses stand for, less one a use.
        scores: [N] how many tokens it saved, weighted, when it was found.
        is_part: [N] whether another piece is made of it.
        pruned: pieces that were found and taken out again because hardly a use was left to them.
        tokens: [D] predicted tokens of each document.
        categories: names of the K categories.
    """

    pieces: tuple[str, ...]
    counts: Int64
    saved: Int64
    scores: Int64
    is_part: tuple[bool, ...]
    pruned: tuple[str, ...]
    tokens: Int64
    categories: tuple[str, ...]


def mine_pieces(
    model: PieceModel,
    documents: tuple[Sequence[str], Sequence[str]],
    weights: Sequence[int],
    rules: Rules,
    kinds: CharacterKinds,
    num_pieces: int,
) -> MinedPieces:
    """Find up to `num_pieces` new pieces.

    A piece that others are made of is needed however few uses are its own. One that is no part of another and has fewer
    uses in the end than a piece must have is taken out, and the next best comes in its place.

    Args:
        model: the SentencePiece BPE model to continue.
        documents: texts, and the category of each.
        weights: what a use counts in each document.
        rules: what a piece may be.
        kinds: sorts characters.
        num_pieces: how many pieces are wanted.
    """
    texts, labels = documents
    start = make_start(model, texts, rules, kinds, num_pieces)
    categories = sorted(set(labels))
    category_of = np.array([categories.index(label) for label in labels], np.int64)
    pruned: list[str] = []
    for round_number in range(_ROUNDS):
        work = start.begin(weights, rules)
        banned = np.array([text_key(piece) for piece in pruned], np.int64)
        first = len(start.names)
        found = mine(work, start.known, start.missing, banned, (first, first + num_pieces))
        pieces, ids, is_part = _name(start, found)
        counts, saved = _count_uses(start, work.text, ids, category_of[start.documents], len(categories))
        useless = _useless(counts.sum(axis=1), is_part, rules.min_count)
        if not useless.any() or round_number == _ROUNDS - 1:
            break
        pruned += [piece for piece, out in zip(pieces, useless, strict=True) if out]
    return MinedPieces(
        pieces=tuple(pieces),
        counts=counts,
        saved=saved,
        scores=found[:, 2].copy(),
        is_part=tuple(is_part),
        pruned=tuple(pruned),
        tokens=_predict_tokens(model, start, work, len(texts)),
        categories=tuple(categories),
    )


def _useless(uses: Int64, is_part: list[bool], least: int) -> npt.NDArray[np.bool_]:
    return (uses < least) & ~np.array(is_part, np.bool_)


def _name(start: Start, found: Int64) -> tuple[list[str], Int64, list[bool]]:
    """Return the new pieces' texts, the ids under which they stand in the text, and which are parts of others.

    A character the model lacked keeps the id it had; any other piece has the next one behind all names.
    """
    names = list(start.names)
    pieces: list[str] = []
    ids = np.arange(len(names), len(names) + len(found), dtype=np.int64)
    parts: set[int] = set()
    for row, (left, right, _) in enumerate(found.tolist()):
        piece = names[left] if right < 0 else names[left] + names[right]
        if right < 0:
            ids[row] = left
        else:
            parts |= {left, right}
        names.append(piece)
        pieces.append(piece)
    return pieces, ids, [int(index) in parts for index in ids]


def _count_uses(start: Start, text: Text, ids: Int64, category_of_place: Int64, num: int) -> tuple[Int64, Int64]:
    """Return uses by category, and tokens saved, of the pieces with these ids."""
    row_of = np.full(len(start.pieces.lengths), -1, np.int64)
    row_of[ids] = np.arange(len(ids))
    places = np.flatnonzero(text.tokens >= 0)
    rows = row_of[text.tokens[places]]
    places, rows = places[rows >= 0], rows[rows >= 0]
    counts = np.bincount(rows * num + category_of_place[places], minlength=len(ids) * num).reshape(-1, num)
    covered = np.concatenate([[0], np.cumsum(_costs(start, start.tokens))])
    widths = covered[text.following[places]] - covered[places]  # behind a token stands another or a document's end
    return counts, np.bincount(rows, weights=widths, minlength=len(ids)).astype(np.int64) - counts.sum(axis=1)


def _costs(start: Start, tokens: Any) -> Int64:
    """Return how many tokens of the model each token costs; the place between two documents and new pieces nothing."""
    costs = np.concatenate([start.costs, [0]])
    return costs[np.where((tokens >= 0) & (tokens < len(start.costs)), tokens, -1)]


def _predict_tokens(model: PieceModel, start: Start, work: Mine, num_documents: int) -> Int64:
    """Return how many tokens each document has for a model with the new pieces.

    A character that has not become a piece is written as its bytes, or a run of such as one unknown token; and the
    merges that come behind all new ones, those of runs of spaces, are counted here.
    """
    places = np.flatnonzero(work.text.tokens != GONE)
    tokens = work.text.tokens[places].astype(np.int64)
    costs = _costs(start, tokens)
    lacking = (tokens >= 0) & ~(work.pieces.flags[tokens] & JOINABLE).astype(np.bool_) & (tokens >= len(model.pieces))
    costs[~lacking & (tokens >= 0)] = 1
    if not model.trainer_spec.byte_fallback:
        costs[lacking] = 1
        costs[1:][lacking[1:] & lacking[:-1]] = 0
    spaces = np.array([not name.strip(SPACE_MARK) for name in start.names] + [False])  # -1, between documents, is none
    is_space = spaces[np.where(tokens < len(start.names), tokens, -1)]
    begins = is_space & ~np.concatenate([[False], is_space[:-1]])
    runs = np.cumsum(begins)[is_space] - 1
    lengths = np.bincount(runs, weights=work.pieces.lengths[tokens[is_space]]).astype(np.int64)
    sizes, kinds = np.unique(lengths, return_inverse=True)
    processor = processor_without_prefix(model)
    costs[is_space] = 0
    costs[begins] = np.array([len(processor.encode(" " * int(size))) for size in sizes], np.int64)[kinds]
    documents = start.documents[places]
    return np.bincount(documents, weights=costs, minlength=num_documents).astype(np.int64)
