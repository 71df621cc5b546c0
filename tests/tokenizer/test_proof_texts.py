"""The texts of a proof hold what they promise."""

from __future__ import annotations

from colossal_llama2.tokenizer.parity import ODD_TEXTS
from colossal_llama2.tokenizer.proof_texts import large_texts, proof_texts

MERGES = [("a", "b"), ("b", "c"), ("c", "d"), ("ab", "c"), ("d", "a"), ("b", "d"), ("b", "e")]
PIECES = ["ab", "bc", "cd", "abc", "da", "bd", "be", "今天"]


def test_every_piece_and_every_marker_and_every_contest() -> None:
    texts = list(proof_texts(PIECES, MERGES, ["<s>", "[END]"]))
    assert set(ODD_TEXTS) <= set(texts)
    assert set(PIECES) <= set(texts)
    assert {"[END]", "a[END]b", "[END] [END]"} <= set(texts)
    contests = {line for text in texts if "\n" in text for line in text.split("\n")}
    # (a, b) meets the merges of b that rank next to it, before or behind: (b, c); and (c, d) both (b, c) and (d, a)
    assert {"abc", "bcd", "cda", "dab", "abcd"} <= contests
    assert list(proof_texts(PIECES, MERGES, ["<s>", "[END]"])) == texts
    assert list(proof_texts(PIECES, MERGES, ["<s>", "[END]"], seed=1)) != texts


def test_random_texts_are_text() -> None:
    texts = list(proof_texts(PIECES, MERGES, []))
    assert len(texts) > 4000
    letters = set("".join(texts))
    for text in texts:
        text.encode()
    assert any(ord(letter) > 0xFFFF for letter in letters)
    assert {"\u3000", "\x00", "\u0301", "\u200b", "▁"} <= letters


def test_large_texts_are_large() -> None:
    first, *others = large_texts(PIECES)
    assert 2 << 20 < len(first.encode()) < 4 << 20
    assert len(others) > 1000
