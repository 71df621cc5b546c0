"""Texts on which an encoder that is wrong anywhere should differ from the reference."""

from __future__ import annotations

import random
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from colossal_llama2.tokenizer.parity import ODD_TEXTS

# Every piece beside every kind of neighbour, in one text: merges act on what is near, and one text of many frames costs
# less than many texts.
_FRAME: Final = "{0}{0} {0} a{0}b 中{0}。 \n{0}\t9{0}9  {0}  {0}<s>{0}😀{0}\x00{0}é{0}."
_MARKER_FRAMES: Final = ("{}", " {}", "{} ", "a{}b", "{0}{0}", "\n{}\n", "今{}天", "{} {}")
_CONTESTS_A_TEXT: Final = 40
_GLUE: Final = ("",) * 6 + (" ", "  ", "\n", "\t", "。", ",", "😀", "<s>", "<0x0A>", "▁", "x", "7", "\u0301", "\x00")
# (first, one behind the last) code points: where scripts, marks, joiners, private use and planes behave differently.
_BLOCKS: Final = (
    (0x00, 0x80), (0x80, 0x250), (0x250, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00), (0xE00, 0x1200),
    (0x2000, 0x2070), (0x2100, 0x2600), (0x2580, 0x25A0), (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4),
    (0xE000, 0xE100), (0xF900, 0xFB00), (0xFE00, 0xFFFE), (0x10000, 0x10400), (0x1D400, 0x1D800), (0x1F300, 0x1FA00),
    (0x20000, 0x20400), (0xE0000, 0xE0200), (0x10FF00, 0x110000),
)  # fmt: skip
_SPACES: Final = " \u00a0\t\n\r\v\f\u2003\u3000\u200b\ufeff\u2581"
_LARGE_TEXT: Final = 9 << 18  # bytes; gigatoken cuts what is longer than 2 MiB into parts for its threads


def proof_texts(
    pieces: Sequence[str], merges: Sequence[tuple[str, str]], markers: Sequence[str], seed: int = 0
) -> Iterator[str]:
    """Yield odd texts, every piece in frames, contests between merges, and random strings of pieces and of Unicode.

    A contest is the text of a merge (a, b) and a further piece that b, or a, would rather be merged with; where two
    such merges have changed places, it comes out otherwise. On either side every merge meets the two nearest to it in
    rank and one drawn at random.

    Args:
        pieces: texts of the vocabulary's pieces.
        merges: the halves of its merges, as texts.
        markers: texts that look like special tokens.
        seed: of what is random.
    """
    generator = random.Random(seed)
    yield from ODD_TEXTS
    for marker in markers:
        yield from (frame.format(marker, marker) for frame in _MARKER_FRAMES)
    for piece in pieces:
        yield piece
        yield _FRAME.format(piece)
    yield from _contests(merges, generator)
    count = min(max(len(pieces) // 2, 2000), 20_000)
    for _ in range(count):
        drawn = generator.choices(pieces, k=generator.randint(2, 24))
        yield "".join(piece + glue for piece, glue in zip(drawn, generator.choices(_GLUE, k=24), strict=False))
    for _ in range(count // 2):
        yield "".join(generator.choices(_SPACES, k=generator.randint(1, 40)))
        yield "".join(_random_letters(generator, generator.randint(1, 40)))


def large_texts(pieces: Sequence[str], seed: int = 0) -> list[str]:
    """Return what threads divide among them: a text of more than 2 MiB, long runs, and many short texts behind it.

    The large text is of letters of many bytes, where there are some: the reference's time goes by letters.
    """
    generator = random.Random(seed)
    wide = [piece for piece in pieces if len(piece.encode()) > 2 * len(piece)]
    drawn = generator.choices(wide if len(wide) > 100 else pieces, k=4096)
    words = " ".join(drawn)
    short = ["".join(generator.choices(pieces, k=40)) for _ in range(1000)]
    return [words * (_LARGE_TEXT // len(words.encode()) + 1), "".join(drawn), "x" * 30_000, " " * 30_000, *short]


def _contests(merges: Sequence[tuple[str, str]], generator: random.Random) -> Iterator[str]:
    """Yield texts of contests, many in a text."""
    begins: dict[str, list[tuple[int, str]]] = defaultdict(list)
    ends: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for rank, (left, right) in enumerate(merges):
        begins[left].append((rank, right))
        ends[right].append((rank, left))
    found = (
        text
        for rank, (left, right) in enumerate(merges)
        for text in (
            *(left + right + further for further in _rivals(begins.get(right, ()), rank, generator)),
            *(further + left + right for further in _rivals(ends.get(left, ()), rank, generator)),
        )
    )
    while batch := list(islice(found, _CONTESTS_A_TEXT)):
        yield "\n".join(batch)


def _rivals(merges: Sequence[tuple[int, str]], rank: int, generator: random.Random) -> Iterator[str]:
    """Yield the pieces of the merge before and the merge behind a rank, and of one drawn from them all."""
    place = bisect(merges, (rank, ""))
    nearest = {merges[other][1] for other in (place - 1, place) if 0 <= other < len(merges)}
    yield from sorted(nearest)
    if len(merges) > len(nearest):
        yield generator.choice(merges)[1]


def _random_letters(generator: random.Random, count: int) -> Iterator[str]:
    """Yield letters of a few scripts, so that scripts meet but words of one occur."""
    blocks = generator.choices(_BLOCKS, k=3)
    for _ in range(count):
        first, behind = generator.choice(blocks)
        yield chr(generator.randrange(first, behind))
