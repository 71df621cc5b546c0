"""The account of an expansion adds up, in print and in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.compression_rate import CompressionRate
from colossal_llama2.tokenizer.expansion import Expansion, new_tokens
from colossal_llama2.tokenizer.piece_list import RefusedPiece, SortedPieces
from colossal_llama2.tokenizer.reachability import UnreachablePiece


def test_account(tmp_path: Path) -> None:
    refused = tuple(RefusedPiece("x" * 1000, line, "too long") for line in range(1, 12))
    pieces = SortedPieces(("a", "b"), ("c",), ("a", "a", "a"), refused)
    expansion = Expansion(
        base_tokens=10,
        sorted_pieces=pieces,
        unreachable=(UnreachablePiece("b", 11, "because", ("x", "y")),),
        source_fingerprint="s",
        target_fingerprint="t",
        texts_compared=5,
        before=CompressionRate(8, 4, 12),
        after=CompressionRate(4, 4, 12),
    )
    expansion.write(tmp_path / "expansion.json")
    content = json.loads((tmp_path / "expansion.json").read_text(encoding="utf-8"))
    counts = content["counts"]
    assert counts["listed"] == 17 == counts["added"] + counts["existing"] + counts["repeated"] + counts["refused"]
    assert content["num_tokens"] == expansion.num_tokens == 12
    assert len(content["refused"]) == 11
    assert content["unreachable"] == [{"piece": "b", "id": 11, "reason": "because", "encoded_as": ["x", "y"]}]
    assert (content["sample"]["before"]["tokens_per_character"], content["sample"]["after"]["tokens_per_byte"]) == (
        2.0,
        round(1 / 3, 6),
    )
    printed = list(expansion.lines())
    assert "tokens       10 -> 12" in printed
    assert "skipped      4 (1 existing, 3 repeated)" in printed
    assert max(map(len, printed)) < 1000


def test_new_tokens_are_those_that_were_added(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no expansion\.json"):
        new_tokens(tmp_path)
    for content, ids in ({"base_tokens": 10, "num_tokens": 12}, [10, 11]), ({"base_tokens": 3, "num_tokens": 3}, []):
        (tmp_path / "expansion.json").write_text(json.dumps(content), encoding="utf-8")
        if ids:
            assert list(new_tokens(tmp_path)) == ids
        else:
            with pytest.raises(InputError, match="added no token"):
                new_tokens(tmp_path)
    (tmp_path / "expansion.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read"):
        new_tokens(tmp_path)
