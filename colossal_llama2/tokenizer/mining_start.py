"""From a SentencePiece model and texts to the arrays that mining starts from, and from pieces back to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from sentencepiece import SentencePieceProcessor

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.expand import expand_model
from colossal_llama2.tokenizer.mining_rules import CharacterKinds
from colossal_llama2.tokenizer.mining_state import (
    BETWEEN,
    JOINABLE,
    NEVER,
    Int32,
    Int64,
    Mine,
    Pieces,
    Rules,
    Text,
    no_candidates,
    text_hash,
)
from colossal_llama2.tokenizer.piece_model import (
    CONTROL,
    NORMAL,
    SPACE_MARK,
    PieceModel,
    is_far_below,
    parse_piece_model,
)

_BATCH: Final = 2000
_MOST_TOKENS: Final = 2**31 - 2


@dataclass(frozen=True)
class Start:
    """Where mining starts.

    Attributes:
        names: the texts of all pieces, by id; the characters that the model lacks stand behind its own pieces.
        tokens: [T] int32, the corpus, `BETWEEN` behind each document.
        documents: [T] int32, the number of the document that each token is of.
        pieces: what is known of the pieces.
        known: ids of the pieces that a join can give.
        missing: [M, 2] ids of characters that may become pieces, and how many tokens a use of each saves.
        costs: [names] how many tokens each piece costs under the model: a character it lacks as many as it has bytes.
    """

    names: tuple[str, ...]
    tokens: Int32
    documents: Int32
    pieces: Pieces
    known: Int64
    missing: Int64
    costs: Int64

    def begin(self, weights: Sequence[int], rules: Rules) -> Mine:
        """Return copies that mining may change.

        Args:
            weights: what a use counts in each document.
            rules: what a piece may be.
        """
        size = len(self.tokens)
        text = Text(
            tokens=self.tokens.copy(),
            following=np.append(np.arange(1, size, dtype=np.int32), np.int32(-1)),
            previous=np.arange(-1, size - 1, dtype=np.int32),
            documents=self.documents,
            weights=np.array(weights, np.int64),
        )
        return Mine(text, Pieces(*(array.copy() for array in self.pieces)), rules, no_candidates())


def make_start(model: PieceModel, texts: Sequence[str], rules: Rules, kinds: CharacterKinds, room: int) -> Start:
    """Encode texts by a model and set up the arrays.

    Two things are otherwise than when the model encodes a corpus. A character it lacks is one token of its own, where
    the model would write bytes or the unknown token; no join knows it until it becomes a piece. And the merges that
    come behind all new ones (Llama's runs of spaces) are not made yet: a new piece may take a space out of such a run.

    Args:
        model: the model.
        texts: the documents.
        rules: what a piece may be.
        kinds: sorts characters.
        room: how many new pieces there can be.

    Raises:
        InputError: the text has more tokens than mining can number.
    """
    present = {entry.piece for entry in model.pieces if entry.type == NORMAL}
    characters = sorted(set().union(*map(set, texts)) - present - {" "})
    helper = expand_model(_without_late_merges(model), characters)
    tokens, documents = _encode(helper, texts)
    names = tuple(entry.piece for entry in helper.pieces)
    pieces = _describe(helper, kinds, rules, room)
    lacking = range(len(model.pieces), len(names))
    pieces.flags[lacking] &= ~JOINABLE
    normal = [i for i, entry in enumerate(helper.pieces) if entry.type == NORMAL and len(entry.piece) > 1]
    costs = np.ones(len(names), np.int64)
    costs[lacking] = [len(character.encode()) for character in characters]
    wanted = [i for i in lacking if _may_be_piece(int(pieces.flags[i]), rules)]
    missing = np.array([(i, costs[i] - 1) for i in wanted], np.int64).reshape(-1, 2)
    return Start(names, tokens, documents, pieces, np.array(normal, np.int64), missing, costs)


def _without_late_merges(model: PieceModel) -> PieceModel:
    """Return a copy in which no merge stands behind those that new pieces will get."""
    copy = parse_piece_model(model.SerializeToString())
    for entry in copy.pieces:
        if entry.type == NORMAL and len(entry.piece) > 1 and is_far_below(entry):
            entry.type = CONTROL
    return copy


def _encode(helper: PieceModel, texts: Sequence[str]) -> tuple[Int32, Int32]:
    """Return tokens, `BETWEEN` behind each document, and the number of the document each of them is of."""
    processor = SentencePieceProcessor(model_proto=helper.SerializeToString())
    parts: list[Int32] = []
    between = np.array([BETWEEN], np.int32)
    for begin in range(0, len(texts), _BATCH):
        for ids in processor.encode(list(texts[begin : begin + _BATCH]), out_type="numpy", num_threads=2):
            parts += [ids.astype(np.int32, copy=False), between]
    lengths = [len(ids) + 1 for ids in parts[::2]]
    if sum(lengths) > _MOST_TOKENS:
        raise InputError(f"the corpus has {sum(lengths)} tokens, too many to mine", remedy="mine a sample of it")
    return np.concatenate(parts), np.repeat(np.arange(len(texts), dtype=np.int32), lengths)


def _describe(helper: PieceModel, kinds: CharacterKinds, rules: Rules, room: int) -> Pieces:
    number = len(helper.pieces) + room
    pieces = Pieces(
        hashes=np.zeros((number, 2), np.int64),
        powers=np.zeros((number, 2), np.int64),
        lengths=np.zeros(number, np.int64),
        scripts=np.zeros(number, np.int64),
        flags=np.zeros(number, np.int64),
        ranks=np.zeros(number, np.int64),
    )
    normal = [i for i, entry in enumerate(helper.pieces) if entry.type == NORMAL]
    for index in normal:
        piece = helper.pieces[index].piece
        flags, script = kinds.of_piece(piece)
        pieces.hashes[index], pieces.powers[index] = text_hash(piece)
        pieces.lengths[index] = len(piece)
        pieces.scripts[index] = max(script, 0)
        # Pieces of the base that break a rule themselves stay, and no new piece is made of them.
        breaks = (script < 0 and rules.one_script) or (SPACE_MARK in piece[1:] and rules.mark_first)
        pieces.flags[index] = flags | JOINABLE | (NEVER if breaks else 0)
    # Of equal scores SentencePiece takes the leftmost, as joins of equal rank do.
    scores = sorted({-helper.pieces[index].score for index in normal})
    rank = {score: number - len(scores) for number, score in enumerate(scores)}
    for index in normal:
        pieces.ranks[index] = rank[-helper.pieces[index].score]
    return pieces


def _may_be_piece(flags: int, rules: Rules) -> bool:
    return not flags & rules.forbidden and (flags & rules.required) == rules.required
