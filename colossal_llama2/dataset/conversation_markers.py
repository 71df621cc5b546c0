"""The tokenizer's added tokens, found in the text that a template writes as the tokenizer itself would find them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

# Unicode's White_Space, which is what the tokenizer strips; Python's own list has four control characters more.
_BLANKS: Final = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


@dataclass(frozen=True)
class Marker:
    """An added token: its id, its text, and how it is found."""

    id: int
    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class Found:
    """A marker in a text, as characters [begin, end)."""

    begin: int
    end: int
    marker: Marker


@dataclass(frozen=True)
class Markers:
    """The added tokens of a tokenizer.

    Attributes:
        markers: by id.
        bos_token_id: the token a text begins with, if any.
        eos_token_id: the token a text ends with, if any.
    """

    markers: tuple[Marker, ...]
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def find(self, text: str, begin: int, end: int) -> Iterator[Found]:
        """Yield the markers in the characters [begin, end) of a text: leftmost first, the longest of several there."""
        if self._pattern is None:
            return
        for match in self._pattern.finditer(text, begin, end):
            yield Found(match.start(), match.end(), self._by_content[match.group()])

    def stand_in(self, text: str) -> bool:
        """Tell whether the text of a marker stands in a text."""
        return self._pattern is not None and self._pattern.search(text) is not None

    @cached_property
    def _by_content(self) -> dict[str, Marker]:
        return {marker.content: marker for marker in self.markers}

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        longest_first = sorted((marker for marker in self.markers if marker.content), key=lambda m: -len(m.content))
        spelled = [
            rf"(?<!\w){re.escape(m.content)}(?!\w)" if m.single_word else re.escape(m.content) for m in longest_first
        ]
        return re.compile("|".join(spelled)) if spelled else None


def markers_of(tokenizer: Any) -> Markers:
    """Return the added tokens of a transformers tokenizer."""
    found: Sequence[tuple[int, Any]] = sorted(tokenizer.added_tokens_decoder.items())
    markers = tuple(
        Marker(int(index), token.content, bool(token.lstrip), bool(token.rstrip), bool(token.single_word))
        for index, token in found
    )
    return Markers(markers, tokenizer.bos_token_id, tokenizer.eos_token_id)


def strip_blanks(text: str, begin: int, end: int, left: bool, right: bool) -> tuple[int, int]:
    """Move the ends of [begin, end) inwards over blanks, where a marker beside it swallows them."""
    while left and begin < end and text[begin] in _BLANKS:
        begin += 1
    while right and end > begin and text[end - 1] in _BLANKS:
        end -= 1
    return begin, end
