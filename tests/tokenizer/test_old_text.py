"""Which texts are old, and the rounds in which pieces that would change them are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.encoder import EncodedTexts, Encoder, Spans, Vocabulary
from colossal_llama2.tokenizer.expander import Attempt
from colossal_llama2.tokenizer.old_text import ASCII, Kept, OnChange, keep_old_text, read_old_text, script_of

ENGLISH = ["the old town " * 400, "a second one, “quoted” — by Löwis", "a third"]


class Greedy(Encoder):
    """Takes the longest new piece at each place of a text, else one character; new ids begin at 1,000,000."""

    def __init__(self, pieces: Sequence[str] = ()) -> None:
        super().__init__(Vocabulary(1_000_000, None, None, None, ""), (Greedy, (pieces,)))
        self._pieces = sorted(((piece, 1_000_000 + i) for i, piece in enumerate(pieces)), key=lambda p: -len(p[0]))

    kind = "greedy"
    _widths = None

    def _encode(self, texts: Sequence[str]) -> EncodedTexts:
        ids: list[int] = []
        offsets = [0]
        for text in texts:
            at = 0
            while at < len(text):
                found = next((item for item in self._pieces if text.startswith(item[0], at)), (text[at], ord(text[at])))
                ids.append(found[1])
                at += len(found[0])
            offsets.append(len(ids))
        return EncodedTexts(np.array(ids, dtype=np.int32), np.array(offsets))

    def _spans(self, text: str) -> Spans:
        raise NotImplementedError


def build(pieces: Sequence[str], allows: Callable[[str], bool]) -> Attempt:
    """Add the pieces, and of ``-x`` the piece x in between, unless that may not be."""
    between = tuple(piece[1:] for piece in pieces if piece.startswith("-") and allows(piece[1:]))
    return Attempt(Greedy([*pieces, *between]), tuple(pieces), between, (), (), None)


def keep(pieces: list[str], documents: list[str], on_change: OnChange = "drop") -> Kept:
    old = read_old_text(documents, pieces)
    return keep_old_text(pieces, lambda piece: piece, build, Greedy(), (old, documents), on_change)


def test_scripts() -> None:
    assert [script_of(c) for c in "aéЖ今々ｱか한"] == [
        "LATIN", "LATIN", "CYRILLIC", "CJK", "CJK", "KATAKANA", "HIRAGANA", "HANGUL",
    ]  # fmt: skip
    assert [script_of(c) for c in "1 。“\n\u0301\ue000\uffff"] == [None] * 8


def test_one_quotation_does_not_make_a_language_old() -> None:
    old = read_old_text([*ENGLISH, "it says 今天。"], ["今天", "天气", "10"])
    assert (old.new_scripts, old.new_letters) == (("CJK",), frozenset("今天"))
    assert (old.num_documents, old.num_mixed) == (3, 1)
    assert old.characters >= ASCII | set("“”—")
    assert "。" not in old.characters  # stands in the quoting document alone
    assert old.covers("10 “")
    assert not old.covers("10年")
    assert old.is_mixed("x今")
    assert not old.is_mixed("x年")  # no letter of the sample


def test_a_stray_letter_of_the_same_script_is_not_old() -> None:
    old = read_old_text(["word " * 5000, "by Löwis"], ["für", "über"])
    assert (old.new_scripts, old.num_mixed) == ((), 0)
    assert "ö" not in old.characters
    assert "ö" in read_old_text(["by Löwis"], ["für"]).characters  # one letter of eight is not stray


def test_a_language_with_a_share_of_the_sample_is_old() -> None:
    old = read_old_text(["today 今天" * 10, "the"], ["今天", "天气"])
    assert (old.new_scripts, old.num_mixed) == ((), 0)
    assert old.covers("今天")


def test_a_sample_of_the_new_language_alone_is_refused() -> None:
    with pytest.raises(InputError, match=r"every document .* \(CJK\)"):
        read_old_text(["a" * 1000 + "今"], ["今天"])


def test_pieces_of_old_characters_are_left_out_by_construction() -> None:
    kept = keep(["今天", "zq", "1。"], ENGLISH)
    assert kept.attempt.added == ("今天", "1。")
    assert [(item.piece, item.reason) for item in kept.changing] == [("zq", "holds nothing but old characters")]
    assert kept.changes.changed == 0


def test_what_comes_out_of_the_sample_goes_round_after_round() -> None:
    documents = ["word " * 5000, "by Löwis and Lö", "x é"]
    kept = keep(["Löwis", "Lö", "ö", "für", "éx"], documents)
    # Löwis hides Lö, and Lö hides ö
    assert kept.attempt.added == ("für", "éx")
    assert {item.piece for item in kept.changing} == {"Löwis", "Lö", "ö"}
    assert all("Löwis" in item.reason for item in kept.changing if item.piece != "ö")
    assert (kept.changes.changed, kept.changes.longer) == (0, 0)


def test_an_intermediate_piece_that_changes_old_text_is_done_without() -> None:
    documents = ["word " * 5000, "x é"]
    kept = keep(["-é", "-wo"], documents)
    assert kept.attempt.added == ("-é",)  # "-wo" is ASCII
    assert kept.attempt.intermediates == ()
    assert kept.banned == ("é",)
    assert kept.changes.changed == 0


def test_error_names_and_allow_counts() -> None:
    documents = [*ENGLISH, "今天 10", "10 towns"]
    with pytest.raises(InputError, match="1 pieces would change old text: '10'"):
        keep(["今天", "10"], documents, "error")
    assert keep(["今天"], documents, "error").attempt.added == ("今天",)
    kept = keep(["今天", "10", "99"], documents, "allow")
    assert kept.attempt.added == ("今天", "10", "99")
    assert (kept.changes.changed, kept.changes.mixed_changed, kept.old.num_mixed) == (1, 1, 1)
    assert [item.piece for item in kept.changing] == ["10", "99"]


def test_a_change_without_a_new_piece_is_refused_or_counted() -> None:
    documents = ["an old town", "a new one"]
    old = read_old_text(documents, ["今天"])

    class Shifted(Greedy):
        def _encode(self, texts: Sequence[str]) -> EncodedTexts:
            return super()._encode([text.replace("town", "TOWN") for text in texts])

    def shifted(pieces: Sequence[str], allows: Callable[[str], bool]) -> Attempt:
        return Attempt(Shifted(pieces), tuple(pieces), (), (), (), None)

    def kept(on_change: OnChange) -> Kept:
        return keep_old_text(["今天"], lambda piece: piece, shifted, Greedy(), (old, documents), on_change)

    with pytest.raises(InputError, match="no new piece comes out"):
        kept("drop")
    allowed = kept("allow")
    assert (allowed.changes.changed, allowed.changes.by_piece) == (1, {})
