"""Over random small models and lists: all that is promised of an expansion of a SentencePiece BPE model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from colossal_llama2.tokenizer.expander import Attempt, UnreachablePolicy
from colossal_llama2.tokenizer.fast import to_fast
from colossal_llama2.tokenizer.folder import read_folder
from colossal_llama2.tokenizer.old_text import keep_old_text, read_old_text
from colossal_llama2.tokenizer.piece_expander import PieceExpander
from colossal_llama2.tokenizer.piece_list import WantedPiece
from colossal_llama2.tokenizer.piece_model import NORMAL, PieceModel, parse_piece_model
from colossal_llama2.tokenizer.reachability import processor_without_prefix

OLD, NEW = "ab1.", "今天气龘"  # 龘 is no piece of the base
PIECES = st.lists(st.text(OLD + NEW + "▁", min_size=1, max_size=6), min_size=1, max_size=12)
TEXTS = st.lists(st.text(OLD + NEW + " ▁\n<s>é", max_size=30), max_size=8)
OLD_TEXTS = st.lists(st.text(OLD + " ", min_size=1, max_size=30), min_size=1, max_size=8)
# Each pair says which two pieces, counted from the newest, the next merge of the base joins.
BASES = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12)


@dataclass(frozen=True)
class Case:
    """An expander of a base made for one example."""

    expander: PieceExpander
    base: PieceModel


@pytest.fixture(scope="module")
def settings_of_llama(piece_model_bytes: Callable[..., bytes]) -> PieceModel:
    return parse_piece_model(piece_model_bytes())


def make_base(like: PieceModel, merges: Sequence[tuple[int, int]]) -> PieceModel:
    """Make a model with the old characters and three of the new ones, some merges, and runs of spaces as in Llama-2."""
    model = parse_piece_model(like.SerializeToString())
    del model.pieces[259:]  # unknown, bos, eos and the bytes stay
    for character in OLD + NEW[:-1] + "▁":
        model.pieces.add(piece=character, score=-1000.0 - len(model.pieces), type=NORMAL)
    known = [*OLD, "▁", *NEW[:-1]]
    for left, right in merges:
        piece = known[-1 - left % len(known)] + known[-1 - right % len(known)]
        if piece not in known and piece.strip("▁"):
            known.append(piece)
            model.pieces.add(piece=piece, score=-float(len(known)), type=NORMAL)
    for length in (2, 3, 4):
        model.pieces.add(piece="▁" * length, score=-1e9, type=NORMAL)
    model.trainer_spec.vocab_size = len(model.pieces)
    return model


def make_case(like: PieceModel, merges: Sequence[tuple[int, int]]) -> Case:
    base = make_base(like, merges)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.model").write_bytes(base.SerializeToString())
        return Case(PieceExpander(read_folder(Path(folder))), base)


def new_pieces(case: Case, pieces: Sequence[str]) -> list[str]:
    wanted = [WantedPiece(piece, line) for line, piece in enumerate(pieces, 1)]
    ordered, _ = case.expander.in_order(case.expander.sort(wanted).new, "auto")
    return ordered


def assert_every_piece_comes_out(case: Case, attempt: Attempt) -> None:
    model = attempt.result
    processor = processor_without_prefix(model)
    size = case.expander.num_base
    assert [entry.piece for entry in model.pieces][size:] == list(attempt.new_pieces)
    for index, piece in enumerate(attempt.new_pieces, size):
        assert processor.encode(case.expander.as_text(piece)) == [index], piece


many = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@many
@given(merges=BASES, pieces=PIECES, texts=TEXTS, policy=st.sampled_from(["close", "drop"]))
def test_what_is_kept_comes_out_and_the_readers_agree(
    settings_of_llama: PieceModel,
    merges: list[tuple[int, int]],
    pieces: list[str],
    texts: list[str],
    policy: UnreachablePolicy,
) -> None:
    case = make_case(settings_of_llama, merges)
    wanted = new_pieces(case, pieces)
    attempt = case.expander.build(wanted, policy, lambda text: True)
    assert sorted([*attempt.added, *(item.piece for item in attempt.left_out)]) == sorted(wanted)
    assert policy == "drop" or not attempt.left_out
    assert policy == "close" or not attempt.intermediates
    assert_every_piece_comes_out(case, attempt)
    size = len(case.base.pieces)
    assert list(attempt.result.pieces[:size]) == list(case.base.pieces)
    before = SentencePieceProcessor(model_proto=case.base.SerializeToString())
    after = SentencePieceProcessor(model_proto=attempt.result.SerializeToString())
    fast = to_fast(attempt.result, [], Path("m"))
    fast.encode_special_tokens = True
    for text in texts:
        ids = after.encode(text)
        assert fast.encode(text, add_special_tokens=False).ids == ids
        assert "  " in text or "▁" in text or len(ids) <= len(before.encode(text))


@many
@given(merges=BASES, pieces=PIECES, sample=OLD_TEXTS, texts=OLD_TEXTS)
def test_text_of_old_characters_is_encoded_as_before(
    settings_of_llama: PieceModel,
    merges: list[tuple[int, int]],
    pieces: list[str],
    sample: list[str],
    texts: list[str],
) -> None:
    case = make_case(settings_of_llama, merges)
    wanted = new_pieces(case, pieces)
    expander = case.expander
    old = read_old_text(sample, map(expander.as_text, wanted))
    kept = keep_old_text(
        wanted,
        expander.as_text,
        lambda these, allows: expander.build(these, "close", allows),
        expander.before,
        (old, sample),
        "drop",
    )
    attempt = kept.attempt
    gone = [item.piece for item in (*kept.changing, *attempt.left_out)]
    assert sorted([*attempt.added, *gone]) == sorted(wanted)
    assert all(set(piece) & set(NEW) for piece in attempt.new_pieces)
    assert not any(set(piece) & set(NEW) for piece in gone)
    assert_every_piece_comes_out(case, attempt)
    for documents in (sample, texts):
        assert attempt.encoder.encode(documents).ids.tolist() == expander.before.encode(documents).ids.tolist()


def test_a_list_of_runs_of_spaces_before_a_word(settings_of_llama: PieceModel) -> None:
    case = make_case(settings_of_llama, [])
    wanted = ["▁▁今天", "▁" * 9 + "气", "▁今", "今▁▁▁"]
    attempt = case.expander.build(wanted, "close", lambda text: True)
    assert_every_piece_comes_out(case, attempt)
    assert all(piece.strip("▁") for piece in attempt.new_pieces)
