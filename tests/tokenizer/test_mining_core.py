"""The compiled miner finds what a slow one in plain Python finds, piece for piece, and leaves the text cut alike."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colossal_llama2.tokenizer.expand import new_scores
from colossal_llama2.tokenizer.mining_core import mine
from colossal_llama2.tokenizer.mining_rules import ALWAYS_OLD, CharacterKinds
from colossal_llama2.tokenizer.mining_start import make_start
from colossal_llama2.tokenizer.mining_state import (
    DIGIT,
    LETTER,
    NEVER,
    NEW,
    OTHER,
    Rules,
    text_hash,
    text_key,
)
from colossal_llama2.tokenizer.piece_model import NORMAL, SPACE_MARK, PieceModel, parse_piece_model

RULES = Rules(5, NEVER | DIGIT, NEW, True, True, True, 2, 1)
KINDS = CharacterKinds(ALWAYS_OLD)
# Characters the model has, two it lacks (one of four bytes), punctuation, letters of another script, a digit, spaces.
TEXTS = st.lists(st.text(st.sampled_from("天气今明龘𠀀。，xé3 \n"), max_size=24), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def model(piece_model_bytes: Callable[..., bytes]) -> PieceModel:
    return parse_piece_model(piece_model_bytes())


class SlowMiner:
    """Byte-pair encoding continued, from the definition: everything is encoded anew for every piece."""

    def __init__(self, model: PieceModel, texts: list[str], weights: list[int], rules: Rules) -> None:
        ranked = sorted((-entry.score, entry.piece) for entry in model.pieces if entry.type == NORMAL)
        late = -float(new_scores(model, 1)[0])
        self.ranks = {piece: (score,) for score, piece in ranked if score < late or len(piece) == 1}
        self.texts = [SPACE_MARK + text.replace(" ", SPACE_MARK) if text else "" for text in texts]
        self.weights, self.rules = weights, rules

    def encode(self, text: str) -> list[str]:
        """Join the best-ranked pair, the leftmost of equal ones, until none is left."""
        tokens = list(text)
        while True:
            ranks = [
                (self.ranks.get(left + right, (float("inf"),)), at)
                for at, (left, right) in enumerate(pairwise(tokens))
                if left in self.ranks and right in self.ranks
            ]
            best, at = min(ranks, default=((float("inf"),), 0))
            if best == (float("inf"),):
                return tokens
            tokens[at : at + 2] = [tokens[at] + tokens[at + 1]]

    def find(self, number: int) -> list[str]:
        """Return the new pieces."""
        pieces: list[str] = []
        while len(pieces) < number:
            scores, uses, where = Counter[str](), Counter[str](), defaultdict[str, set[int]](set)
            for document, text in enumerate(self.texts):
                for piece, gain in self.joins(self.encode(text)):
                    scores[piece] += gain * self.weights[document]
                    uses[piece] += 1
                    where[piece].add(document)
            fit = [
                (-score, len(piece), text_key(piece), piece)
                for piece, score in scores.items()
                if uses[piece] >= self.rules.min_count and len(where[piece]) >= self.rules.min_documents
            ]
            if not fit:
                break
            pieces.append(min(fit)[-1])
            self.ranks[pieces[-1]] = (1e9 + len(pieces),)
        return pieces

    def joins(self, tokens: list[str]) -> list[tuple[str, int]]:
        """Return what could become a piece, each use that overlaps no other, and the tokens it saves."""
        found = [(token, len(token.encode()) - 1) for token in tokens if token not in self.ranks and self.may_be(token)]
        last: dict[str, int] = {}
        for at, (left, right) in enumerate(pairwise(tokens)):
            known = left in self.ranks and right in self.ranks
            if known and self.may_be(left + right) and last.get(left + right) != at - 1:
                found.append((left + right, 1))
                last[left + right] = at
        return found

    def may_be(self, piece: str) -> bool:
        """Tell whether the rules let a text be a piece."""
        flags = KINDS.of_piece(piece)[0]
        return (
            len(piece) <= self.rules.max_length
            and not flags & (NEVER | DIGIT)
            and bool(flags & NEW)
            and SPACE_MARK not in piece[1:]
            and not (flags & LETTER and flags & OTHER)
            and KINDS.of_piece(piece)[1] >= 0
        )


def run_fast(
    model: PieceModel, texts: list[str], weights: list[int], rules: Rules
) -> tuple[list[str], list[list[str]]]:
    start = make_start(model, texts, rules, KINDS, 12)
    work = start.begin(weights, rules)
    first = len(start.names)
    found = mine(work, start.known, start.missing, np.zeros(0, np.int64), (first, first + 12))
    names, pieces = list(start.names), []
    for left, right, _ in found.tolist():
        names.append(names[left] + (names[right] if right >= 0 else ""))
        pieces.append(names[-1])
    cut: list[list[str]] = [[] for _ in texts]
    for token, document in zip(work.text.tokens.tolist(), start.documents.tolist(), strict=True):
        if token >= 0:
            cut[document].append(names[token])
    return pieces, cut


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, weight=st.integers(1, 3), min_documents=st.integers(1, 2))
def test_same_pieces_as_the_definition(texts: list[str], weight: int, min_documents: int, model: PieceModel) -> None:
    weights = [weight if number % 2 else 1 for number in range(len(texts))]
    rules = RULES._replace(min_documents=min_documents)
    slow = SlowMiner(model, texts, weights, rules)
    pieces, cut = run_fast(model, texts, weights, rules)
    assert pieces == slow.find(12)
    assert cut == [slow.encode(text) for text in slow.texts]


def test_overlapping_uses_count_once_and_characters_must_come_first(model: PieceModel) -> None:
    pieces, cut = run_fast(model, ["天天天天天", "龘气龘气"], [1, 1], RULES)
    assert pieces[0] == "龘"  # saves two tokens a use
    assert set(pieces) >= {"龘", "龘气", "天天"}
    assert pieces.index("龘") < pieces.index("龘气")
    assert cut[0] == ["▁天", "天天", "天天"]


def test_the_order_of_documents_is_all_one(model: PieceModel) -> None:
    texts = ["今天天气", "明天天气", "今天明天", "天气明", "气今明"]
    assert run_fast(model, texts, [1] * 5, RULES)[0] == run_fast(model, texts[::-1], [1] * 5, RULES)[0]


@given(left=st.text(max_size=5), right=st.text(max_size=5))
def test_the_hash_of_a_join_follows_from_its_halves(left: str, right: str) -> None:
    (one, one_power), (two, two_power) = text_hash(left), text_hash(right)
    both, power = text_hash(left + right)
    for half, prime in enumerate((2_147_483_647, 2_147_483_629)):
        assert both[half] == (one[half] * two_power[half] + two[half]) % prime
        assert power[half] == one_power[half] * two_power[half] % prime
    assert (text_key(left) == text_key(right)) == (left == right)


def test_tables_grow_without_losing_anything(model: PieceModel) -> None:
    """More pairs than the tables hold at first: every one of them is counted."""
    letters = [chr(0x4E00 + number) for number in range(400)]
    texts = ["".join(letters[(i * j + j) % 400] for j in range(200)) for i in range(1, 700)] * 2
    pieces, _ = run_fast(model, texts, [1] * len(texts), RULES._replace(max_length=2))
    counts = Counter(character for text in texts for character in text if character not in "今天")
    assert len(pieces) == 12
    assert counts[pieces[0]] == max(counts.values())


def test_what_is_banned_never_becomes_a_piece(model: PieceModel) -> None:
    texts = [",今天,今天,天气,天气,天气"]
    start = make_start(model, texts, RULES, KINDS, 1)
    first, pieces = len(start.names), []
    for banned in ([], [text_key("天气")]):
        work = start.begin([1], RULES)
        (left, right, score), *_ = mine(
            work, start.known, start.missing, np.array(banned, np.int64), (first, first + 1)
        )
        pieces.append((start.names[left] + start.names[right], score))
    assert pieces == [("天气", 3), ("今天", 2)]
