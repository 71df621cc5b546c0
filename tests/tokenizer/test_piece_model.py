"""Model files: read, refused, and cut into halves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.piece_model import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    as_text,
    demote_markers,
    halves,
    has_identity_normalizer,
    parse_piece_model,
    piece_ids,
    read_piece_model,
    require_bpe,
)


@given(st.text(min_size=1, max_size=20))
def test_halves_are_every_cut_once(piece: str) -> None:
    cuts = list(halves(piece))
    assert len(cuts) == len(piece) - 1
    assert all(left and right and left + right == piece for left, right in cuts)
    assert len({len(left) for left, _ in cuts}) == len(cuts)


def test_reading(tmp_path: Path, piece_model_bytes: Callable[..., bytes]) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(piece_model_bytes())
    model = read_piece_model(path)
    assert model.SerializeToString() == parse_piece_model(piece_model_bytes()).SerializeToString()
    assert piece_ids(model)["<s>"] == 1
    assert has_identity_normalizer(model)
    require_bpe(model, path)
    assert as_text("▁a▁") == " a "


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 50, b"version https://git-lfs.github.com/spec/v1\n"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.model: not a SentencePiece model"):
        read_piece_model(path)


def test_half_a_file_is_refused(tmp_path: Path, piece_model_bytes: Callable[..., bytes]) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(piece_model_bytes()[:100])
    with pytest.raises(InputError, match="not a SentencePiece model"):
        read_piece_model(path)


def test_other_algorithms_are_named(piece_model_bytes: Callable[..., bytes]) -> None:
    with pytest.raises(InputError, match="type Unigram"):
        require_bpe(parse_piece_model(piece_model_bytes(model_type="unigram")), Path("m"))


def test_only_named_markers_are_demoted(piece_model_bytes: Callable[..., bytes]) -> None:
    model = parse_piece_model(piece_model_bytes(user_defined_symbols="<a>,<b>", add_dummy_prefix=False))
    demote_markers(model, {"<a>", "t"})
    types = {entry.piece: entry.type for entry in model.pieces}
    assert (types["<a>"], types["<b>"]) == (CONTROL, USER_DEFINED)
    assert types["t"] == NORMAL
