"""What gigatoken is given: no special token to find, the merges in SentencePiece's order; and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers

from colossal_llama2.tokenizer.fast import ranked_merges
from colossal_llama2.tokenizer.gigatoken_model import UnfitError, from_fast, from_piece_model, pieces_and_merges
from colossal_llama2.tokenizer.piece_model import as_text, parse_piece_model

PATH = Path("tokenizer.model")


def test_special_tokens_are_left_out_and_merges_kept(piece_model_bytes: Callable[..., bytes]) -> None:
    model = parse_piece_model(piece_model_bytes())
    written = from_piece_model(model, PATH)
    content = json.loads(written.content)
    assert written.markers == ("<unk>", "<s>", "</s>")
    assert not set(written.markers) & set(content["model"]["vocab"])
    assert content["added_tokens"] == []
    assert written.aside is None
    pieces, merges = pieces_and_merges(written)
    assert merges == [(as_text(left), as_text(right)) for left, right in ranked_merges(model)]
    assert len(pieces) == len(model.pieces) - 3 - 256


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"remove_extra_whitespaces": True}, "removes spaces"),
        ({"byte_fallback": False, "vocab_size": 300}, "no piece for every byte"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises text"),
        ({"model_type": "unigram"}, "type Unigram"),
    ],
)
def test_what_gigatoken_does_otherwise_is_refused(
    options: dict[str, Any], reason: str, piece_model_bytes: Callable[..., bytes]
) -> None:
    with pytest.raises(UnfitError, match=reason):
        from_piece_model(parse_piece_model(piece_model_bytes(**options)), PATH)


def test_tied_scores_are_refused(piece_model_bytes: Callable[..., bytes]) -> None:
    model = parse_piece_model(piece_model_bytes())
    for entry in model.pieces[-2:]:
        entry.piece, entry.score = entry.piece + "qq", -5000.0
    with pytest.raises(UnfitError, match="scores that are not unique"):
        from_piece_model(model, PATH)


def test_user_defined_pieces_are_looked_for_as_they_are_typed(piece_model_bytes: Callable[..., bytes]) -> None:
    model = parse_piece_model(piece_model_bytes(user_defined_symbols="a▁b,(x)", add_dummy_prefix=False))
    aside = from_piece_model(model, PATH).aside
    assert aside is not None
    assert [bool(re.search(aside, text)) for text in ("a b", "a▁b", "x(x)", "a  b", "xx")] == [True] * 3 + [False] * 2


def test_byte_level_tokens_become_text(byte_level_tokenizer_dir: Path) -> None:
    tokenizer = Tokenizer.from_file(str(byte_level_tokenizer_dir / "tokenizer.json"))
    tokenizer.add_tokens(["<tool>"])
    written = from_fast(tokenizer)
    assert written.markers == ("<|begin|>", "<|end|>", "<tool>")
    assert written.aside == "<tool>"
    pieces, merges = pieces_and_merges(written)
    assert {" the", "今", "\n", "a"} <= set(pieces)
    assert (" th", "e") in merges
    assert not any("Ġ" in piece for piece in pieces)


def test_tokens_found_in_changed_text_are_refused(byte_level_tokenizer_dir: Path) -> None:
    tokenizer = Tokenizer.from_file(str(byte_level_tokenizer_dir / "tokenizer.json"))
    tokenizer.normalizer = normalizers.NFC()
    from_fast(tokenizer)
    tokenizer.add_tokens([AddedToken("<é>", normalized=True)])
    with pytest.raises(UnfitError, match="changed before"):
        from_fast(tokenizer)
