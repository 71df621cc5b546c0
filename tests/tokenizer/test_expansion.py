"""The account of an expansion adds up, in print and in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.compression_rate import CompressionRate
from colossal_llama2.tokenizer.expander import Attempt, LeftOut
from colossal_llama2.tokenizer.expansion import Expansion, SampleCounts, new_tokens
from colossal_llama2.tokenizer.old_text import Changes, Kept, OldText
from colossal_llama2.tokenizer.piece_list import RefusedPiece, SortedPieces


def account(**changes: Any) -> Expansion:
    refused = tuple(RefusedPiece("x" * 1000, line, "too long") for line in range(1, 12))
    values: dict[str, Any] = {
        "base_tokens": 10,
        "sorted_pieces": SortedPieces(("a", "▁1", "今"), ("c",), ("a", "a", "a"), refused),
        "added": ("a", "▁1"),
        "intermediates": ("m",),
        "left_out": (RefusedPiece("今", 20, "because"),),
        "raised": ("a",),
        "merge_order": "length",
        "policy": {"unreachable": "close", "merge_order": "auto"},
        "source_fingerprint": "s",
        "target_fingerprint": "t",
        "texts_compared": 5,
        "sample": SampleCounts(CompressionRate(8, 4, 12), CompressionRate(4, 4, 12), longer=0),
    }
    return Expansion(**{**values, **changes})


def test_account(tmp_path: Path) -> None:
    expansion = account()
    expansion.write(tmp_path / "expansion.json")
    content = json.loads((tmp_path / "expansion.json").read_text(encoding="utf-8"))
    counts = content["counts"]
    parts = ("added", "existing", "repeated", "refused", "left_out")
    assert counts["listed"] == 18 == sum(counts[name] for name in parts)
    assert content["num_tokens"] == expansion.num_tokens == 10 + counts["added"] + counts["intermediates"] == 13
    assert content["format_version"] == 2
    assert len(content["refused"]) == 11
    assert content["left_out"] == [{"piece": "今", "line": 20, "reason": "because"}]
    assert (content["intermediates"], content["raised"], content["old_text"]) == (["m"], ["a"], None)
    assert (content["sample"]["before"]["tokens_per_character"], content["sample"]["after"]["tokens_per_byte"]) == (
        2.0,
        round(1 / 3, 6),
    )
    printed = list(expansion.lines())
    assert "tokens       10 -> 13" in printed
    assert "skipped      4 (1 existing, 3 repeated)" in printed
    assert "left out     1 (line 20 '今': because)" in printed
    assert any("2 added pieces of ASCII alone" in line and "--keep_identical FILE" in line for line in printed)
    assert max(map(len, printed)) < 1000


def test_account_of_old_text(tmp_path: Path) -> None:
    old = OldText(frozenset("abc é"), {"LATIN": 0.999, "CJK": 0.001}, ("CJK",), frozenset("今"), 7, 2)
    attempt = Attempt(None, (), (), (), (), None)  # type: ignore[arg-type]
    changing = (LeftOut("10", "holds nothing but old characters"),)
    kept = Kept(attempt, old, Changes(0, 2, 0, {}), changing, ("0",))
    policy = {"unreachable": "close", "merge_order": "auto", "on_change": "drop"}
    expansion = account(kept=kept, policy=policy)
    expansion.write(tmp_path / "expansion.json")
    content = json.loads((tmp_path / "expansion.json").read_text(encoding="utf-8"))["old_text"]
    assert (content["documents"], content["changed"], content["mixed_documents"], content["mixed_changed"]) == (
        7,
        0,
        2,
        2,
    )
    assert content["characters_beyond_ascii"] == "é"
    assert [item["piece"] for item in content["changing"]] == ["10"]
    printed = "\n".join(expansion.lines())
    assert "7 of 7 documents as before; 0 got more tokens; letters of LATIN" in printed
    assert "any other text of ASCII and 1 more characters" in printed
    assert "2 documents hold letters of CJK too and were not held to it: 2 changed" in printed
    allowed = account(
        kept=Kept(attempt, old, Changes(3, 2, 0, {}), changing, ()), policy={**policy, "on_change": "allow"}
    )
    printed = "\n".join(allowed.lines())
    assert "4 of 7 documents as before" in printed
    assert "1 pieces change it ('10': holds nothing but old characters)" in printed
    assert "any other text" not in printed


def test_no_piece_gets_lost() -> None:
    with pytest.raises(AssertionError):
        account(left_out=())


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
