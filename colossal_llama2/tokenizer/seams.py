"""Where two parts of a text meet among its tokens: counted from the widths of tokens, for many texts at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from colossal_llama2.tokenizer.encoder import EncodedTexts

Counts = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TokenWidths:
    """How many bytes of UTF-8 text each token stands for.

    Attributes:
        widths: int32, by id; -1 for a token that stands for no certain number of bytes (unknown, control).
        prefix: bytes that the tokens of a text have more than the text: the dummy prefix.
    """

    widths: npt.NDArray[np.int32]
    prefix: int


def find_seams(
    encoded: EncodedTexts, sizes: npt.NDArray[np.int64], seams: npt.NDArray[np.int64], widths: TokenWidths
) -> tuple[Counts, Flags, Flags]:
    """Count the tokens that lie wholly before the seam of each text.

    Args:
        encoded: the ids of n texts.
        sizes: int64 (n), the bytes of each text.
        seams: int64 (n), the byte at which its second part begins.
        widths: what the tokens stand for.

    Returns:
        Per text: how many leading tokens end at or before the seam; whether a token lies on both sides of it; and
        whether the widths account for every byte of the text. Where they do not, the first two mean nothing. A text
        whose seam is 0 has no token before it; one whose seam is its end has all of them.
    """
    offsets = encoded.offsets
    found = widths.widths[encoded.ids]
    uncertain = np.zeros(len(found) + 1, dtype=np.int64)
    np.cumsum(found < 0, out=uncertain[1:])
    ends = np.zeros(len(found) + 1, dtype=np.int64)  # ends[k]: the bytes of the first k tokens of all texts together
    np.cumsum(np.maximum(found, 0), out=ends[1:])
    begins = ends[offsets[:-1]] + widths.prefix
    lengths = np.diff(offsets)
    whole = (ends[offsets[1:]] - begins == sizes) & (uncertain[offsets[1:]] == uncertain[offsets[:-1]])
    places = begins + seams
    counts = np.searchsorted(ends[1:], places, side="right") - offsets[:-1]
    # Tokens of no width, and texts not accounted for, would lead beyond the text.
    counts = np.clip(counts, 0, lengths)
    straddles = (counts == 0) | (ends[offsets[:-1] + counts] < places)
    outside = (seams <= 0) | (seams >= sizes)
    counts[seams <= 0] = 0
    ended = (seams > 0) & (seams >= sizes)
    counts[ended] = lengths[ended]
    return counts.astype(np.int32), straddles & ~outside, whole | outside


def find_seam_in(spans: Sequence[tuple[int, int]], split: int) -> tuple[int, bool]:
    """Count leading spans that lie within `split` characters (more than 0); tell whether the next begins within.

    Of the bytes of one character only the last has a span; the others are empty and stand where the character
    begins, so an empty span belongs to what begins there.
    """
    for count, (begin, end) in enumerate(spans):
        if end > split or (begin == end and begin >= split):
            return count, begin < split
    return len(spans), False


def byte_sizes(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the length of each text in bytes of UTF-8."""
    sizes = (len(text) if text.isascii() else len(text.encode()) for text in texts)
    return np.fromiter(sizes, dtype=np.int64, count=len(texts))
