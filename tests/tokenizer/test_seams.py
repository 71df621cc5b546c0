"""Counting tokens before a seam by widths, against counting them one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.tokenizer.encoder import EncodedTexts
from colossal_llama2.tokenizer.seams import TokenWidths, byte_sizes, find_seam_in, find_seams

WIDTHS = np.array([-1, 1, 2, 3, 7], dtype=np.int32)


@st.composite
def texts_with_seams(draw: st.DrawFn) -> tuple[list[list[int]], list[int], list[int], int]:
    """Draw (ids, size, seam) of each text, and the dummy prefix; most sizes are what the ids add up to."""
    prefix = draw(st.integers(0, 1))
    ids, sizes, seams = [], [], []
    for _ in range(draw(st.integers(0, 6))):
        text = draw(st.lists(st.integers(1, 4), max_size=8))
        text = [1, *text] if prefix and text else text
        if draw(st.integers(0, 9)) == 0:
            text.append(0)
        size = max(sum(int(WIDTHS[index]) for index in text if index) - (prefix if text else 0), 0)
        size += draw(st.sampled_from([0, 0, 0, 0, 1]))
        ids.append(text)
        sizes.append(size)
        seams.append(draw(st.integers(0, size)))
    return ids, sizes, seams, prefix


@given(drawn=texts_with_seams())
def test_equals_walking_along_each_text(drawn: tuple[list[list[int]], list[int], list[int], int]) -> None:
    ids, sizes, seams, prefix = drawn
    flat = np.array([index for text in ids for index in text], dtype=np.int32)
    encoded = EncodedTexts(flat, np.cumsum([0, *map(len, ids)]).astype(np.int64))
    found = find_seams(encoded, np.array(sizes, np.int64), np.array(seams, np.int64), TokenWidths(WIDTHS, prefix))
    assert [part.dtype.name for part in found] == ["int32", "bool", "bool"]
    for text, size, seam, count, straddles, whole in zip(ids, sizes, seams, *(p.tolist() for p in found), strict=True):
        ends = [sum(int(WIDTHS[index]) for index in text[: place + 1]) - prefix for place in range(len(text))]
        if not 0 < seam < size:
            assert whole
            assert (count, straddles) == (0 if seam == 0 else len(text), False)
        elif 0 in text or ends[-1:] != [size]:
            assert not whole
        else:
            assert whole
            assert count == sum(end <= seam for end in ends)
            assert straddles == (seam not in ends)


def test_spans_of_the_bytes_of_one_character() -> None:
    spans = [(0, 1), (1, 1), (1, 1), (1, 2), (2, 4)]  # three bytes of the second character, then two characters
    assert [find_seam_in(spans, split) for split in (1, 2, 3, 4)] == [(1, False), (4, False), (4, True), (5, False)]


def test_sizes_are_bytes() -> None:
    assert byte_sizes(["", "ab", "é今😀"]).tolist() == [0, 2, 9]
    assert byte_sizes([]).dtype.name == "int64"
