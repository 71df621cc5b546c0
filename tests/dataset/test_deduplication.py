"""Duplicates: against plain sets and dictionaries, and the same however the documents are divided over shards."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset import deduplication, text_hashes
from colossal_llama2.dataset.deduplication import (
    Deduplicate,
    find_duplicates,
    find_originals,
    hash_of_chunks,
    hash_version,
    rows_per_band,
)
from colossal_llama2.errors import InputError

HAN = "今天天气很好我们学习语言模型中国文字世界你好大小上下左右东西南北春夏秋冬日月星辰山川河流"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def divided(texts: Sequence[str], sizes: Sequence[int], how: Deduplicate) -> list[Any]:
    """Hash texts in shards of these sizes; the rest is the last shard."""
    ends = [*np.minimum(np.cumsum([0, *sizes]), len(texts)).tolist(), len(texts)]
    return [text_hashes.text_hashes(texts[begin:end], how) for begin, end in itertools.pairwise(ends)]


def shingles(text: str) -> set[bytes]:
    """The definition, told in words: 15 bytes from the beginning of each character, whatever is blank left out."""
    plain = "".join(c.lower() if c.isascii() else c for c in text if c not in " \t\r\n\x0b\x0c").encode()
    if len(plain) < 15:
        return {plain}
    starts = [i for i in range(len(plain) - 14) if plain[i] & 0xC0 != 0x80]
    return {plain[i : i + 15] for i in starts}


def similarity(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


@given(texts=st.lists(TEXT | st.sampled_from(["", "a", "字"]), max_size=20), sizes=st.lists(st.integers(0, 5)))
def test_exact_keeps_the_first_of_each_text(texts: list[str], sizes: list[int]) -> None:
    hashes = divided(texts, sizes, "exact")
    assert find_originals(hashes, "exact", 1).tolist() == [texts.index(text) for text in texts]
    masks = find_duplicates(hashes, "exact", 1)
    assert [len(mask) for mask in masks] == [len(part) for part in hashes]
    expected = [texts.index(text) < number for number, text in enumerate(texts)]
    assert [bool(value) for mask in masks for value in mask] == expected


@pytest.mark.parametrize("how", ["exact", "minhash"])
def test_a_table_sorted_in_parts_gives_the_same(how: Deduplicate, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(3)
    texts = ["".join(draw.choices(HAN, k=80)) for _ in range(40)]
    texts = [draw.choice(texts) for _ in range(150)]
    hashes = divided(texts, [40, 0, 60], how)
    whole = find_originals(hashes, how, 0.8).tolist()
    assert whole == [texts.index(text) for text in texts]
    monkeypatch.setattr(deduplication, "_SORTED_AT_ONCE", 10)
    monkeypatch.setattr(deduplication, "_COMPARED_AT_ONCE", 4)
    assert find_originals(hashes, how, 0.8).tolist() == whole


@settings(deadline=None, max_examples=60)
@given(text=TEXT, cuts=st.lists(st.integers(0, 40), max_size=4))
def test_a_text_in_chunks_has_the_hash_of_the_whole(text: str, cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for long in (text, text * 30):
        chunks = [long[begin:end] for begin, end in zip(bounds[:-1], [*bounds[1:-1], len(long)], strict=True)]
        for how in ("exact", "minhash"):
            expected = text_hashes.text_hashes([long], how)  # type: ignore[arg-type]
            assert (hash_of_chunks(chunks, how) == expected).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("texts", [["中文字😀 ab" * 400, "short", "Q" * 5000, "", "字" * 3000]])
def test_large_texts_are_taken_in_parts(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = text_hashes.text_hashes(texts, "minhash")
    assert (whole == np.concatenate([text_hashes.text_hashes([text], "minhash") for text in texts])).all()
    monkeypatch.setattr(text_hashes, "_GROUP_BYTES", 100)
    assert (text_hashes.text_hashes(texts, "minhash") == whole).all()
    for text, row in zip(texts, whole, strict=True):
        parts = [text[begin : begin + 7] for begin in range(0, len(text), 7)]
        assert (hash_of_chunks(parts, "minhash")[0] == row).all()


@pytest.mark.parametrize("alphabet", [HAN, "abcdefghijklmnopqrstuvwxyz "], ids=["han", "latin"])
def test_signatures_estimate_the_share_of_common_shingles(alphabet: str) -> None:
    draw = random.Random(5)
    errors = []
    for changed in (0, 1, 3, 6, 12, 40):
        for _ in range(5):
            text = "".join(draw.choices(alphabet, k=900))
            letters = list(text)
            for place in draw.sample(range(900), changed):
                letters[place] = draw.choice(alphabet)
            other = "".join(letters)
            one, two = text_hashes.text_hashes([text, other], "minhash")
            errors.append(float((one == two).mean()) - similarity(text, other))
    assert max(map(abs, errors)) < 0.17  # five standard deviations at worst
    assert abs(sum(errors) / len(errors)) < 0.03


def test_near_copies_are_left_out_and_others_stay() -> None:
    draw = random.Random(7)
    originals = ["".join(draw.choices(HAN, k=300)) for _ in range(60)]
    copies = [f"{text[:140]}\n {text[140:]}。" for text in originals[::2]]  # other spacing, one character more
    cousins = [text[:150] + "".join(draw.choices(HAN, k=150)) for text in originals[1::2]]  # half in common
    texts = [*originals, *copies, *cousins]
    assert all(similarity(text, copy) > 0.95 for text, copy in zip(originals[::2], copies, strict=True))
    assert all(similarity(text, cousin) < 0.5 for text, cousin in zip(originals[1::2], cousins, strict=True))
    for sizes in ([], [10, 50, 1]):
        found = find_originals(divided(texts, sizes, "minhash"), "minhash", 0.8).tolist()
        assert found == [*range(60), *range(0, 60, 2), *range(90, 120)]


def test_english_pages_are_not_copies_for_their_common_words() -> None:
    words = "the of and to in is that for it as was with be by on not he his but at are this have from".split()  # noqa: SIM905
    draw = random.Random(1)
    texts = [" ".join(draw.choices(words, k=400)) for _ in range(50)]
    assert not any(mask.any() for mask in find_duplicates(divided(texts, [], "minhash"), "minhash", 0.8))
    louder = [text.upper() for text in texts]
    found = find_originals(divided([*texts, *louder], [], "minhash"), "minhash", 0.8).tolist()
    assert found == [*range(50), *range(50)]


def test_a_chain_goes_with_its_first() -> None:
    """Signatures made by hand: each differs from the one before it in 16 of 128 slots, from the first in ever more."""
    rows = np.tile(np.arange(128, dtype=np.uint32), (6, 1))
    for number in range(1, 6):
        rows[number:, 16 * (number - 1) : 16 * number] = 1000 + number
    assert find_originals([rows], "minhash", 0.85).tolist() == [0] * 6
    assert find_originals([rows], "minhash", 0.9).tolist() == list(range(6))
    assert find_originals([rows[::2], rows[1::2]], "minhash", 0.85).tolist() == [0] * 6


def test_bands_leave_few_pairs_at_the_threshold_unseen() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9, 1.0):
        rows = rows_per_band(threshold)
        assert 1 - (1 - threshold**rows) ** (128 // rows) >= 0.97
    assert rows_per_band(0.8) == 7
    assert rows_per_band(0.5) < rows_per_band(0.9)


def test_nothing_at_all() -> None:
    for how in ("exact", "minhash"):
        empty = text_hashes.text_hashes([], how)  # type: ignore[arg-type]
        assert find_duplicates([], how, 0.8) == []  # type: ignore[arg-type]
        assert [len(mask) for mask in find_duplicates([empty, empty], how, 0.8)] == [0, 0]  # type: ignore[arg-type]


def test_without_the_library_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hash_version("minhash") != hash_version("exact")
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(InputError, match="needs the package rensa, which is not installed; pip install"):
        text_hashes.text_hashes(["a"], "minhash")
