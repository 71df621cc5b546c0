"""What mining keeps in memory: rules, pieces, the text and the candidates, as arrays that compiled code can work on.

A piece is known by a hash of its text, so that two pairs of neighbours with one concatenation are one candidate:
SentencePiece joins any two neighbours whose concatenation is a piece, not only those the piece was mined from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

# What a piece holds, as flags, and whether it takes part in joins at all.
DIGIT: Final = 1
LETTER: Final = 2
OTHER: Final = 4
NEW: Final = 8
NEVER: Final = 16
MARK: Final = 32
JOINABLE: Final = 64

# Columns of `Candidates.entries`.
KEY: Final = 0
COUNT: Final = 1
QUEUED: Final = 2
LAST: Final = 3
LENGTH: Final = 4
GAIN: Final = 5

# Rows of `Candidates.sizes`.
ENTRIES: Final = 0
RECORDS: Final = 1
TAKEN: Final = 2

FREE: Final = -1
"""The key of a free slot."""
BETWEEN: Final = -1
"""Stands between two documents in place of a token."""
GONE: Final = -2
"""Stands where a token was that another one covers now."""

PRIMES: Final = (2_147_483_647, 2_147_483_629)
BASES: Final = (1_315_423_911, 1_779_033_703)


class Rules(NamedTuple):
    """Which joins may become a new piece.

    Attributes:
        max_length: most characters of a piece.
        forbidden: flags that a piece must not have.
        required: flags that a piece must have.
        one_script: whether letters of two scripts may not stand in one piece.
        letters_apart: whether letters and other characters may not stand in one piece.
        mark_first: whether the space mark may only begin a piece.
        min_count: fewest uses.
        min_documents: fewest documents that use it.
    """

    max_length: int
    forbidden: int
    required: int
    one_script: bool
    letters_apart: bool
    mark_first: bool
    min_count: int
    min_documents: int


class Pieces(NamedTuple):
    """What the miner knows of every piece, by id; there are rows for the pieces to come.

    Attributes:
        hashes: [P, 2] int64, the two halves of the text's hash.
        powers: [P, 2] int64, each base to the power of the text's length.
        lengths: [P] int64, in characters.
        scripts: [P] int64, 0 where there is none.
        flags: [P] int64.
        ranks: [P] int64, a lower one is joined first.
    """

    hashes: Int64
    powers: Int64
    lengths: Int64
    scripts: Int64
    flags: Int64
    ranks: Int64


class Text(NamedTuple):
    """The corpus as a linked list of tokens in the places of the base's tokens; a joined one stands in its first place.

    Attributes:
        tokens: [T] int32, id of the piece that stands in a place, or `BETWEEN`, or `GONE`.
        following: [T] int32, place of the next token, -1 behind the last.
        previous: [T] int32, place of the token before, -1 before the first.
        documents: [T] int32, number of the document.
        weights: [D] int64, what a use in a document counts.
    """

    tokens: Int32
    following: Int32
    previous: Int32
    documents: Int32
    weights: Int64


class Candidates(NamedTuple):
    """Strings that could become pieces, and where they stand.

    Attributes:
        slots: [S, 2] int64, a hash table: the key, `FREE` where there is none; and the row of the candidate, or -1 - id
            where the string is a piece already.
        entries: [C, 6] int64: key; weighted count of the uses that stand in the text now; the highest score under which
            the candidate waits in the queue; its last record; its characters; what a use of it saves in tokens.
        records: [R, 2] int64: a place, perhaps out of date, and the record before of the same candidate, or -1.
        sizes: [3] int64: rows of entries, of records and of slots that are in use.
    """

    slots: Int64
    entries: Int64
    records: Int64
    sizes: Int64


class Mine(NamedTuple):
    """All of it."""

    text: Text
    pieces: Pieces
    rules: Rules
    candidates: Candidates


def text_hash(text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return hash and powers of a text: (h1, h2), (base1 ** length, base2 ** length), each modulo its prime."""
    hashes, powers = [0, 0], [1, 1]
    for half, (base, prime) in enumerate(zip(BASES, PRIMES, strict=True)):
        for character in text:
            hashes[half] = (hashes[half] * base + ord(character) + 1) % prime
            powers[half] = powers[half] * base % prime
    return (hashes[0], hashes[1]), (powers[0], powers[1])


def text_key(text: str) -> int:
    """Return the hash of a text as one number of 62 bits; of equal candidates the lower one is taken first."""
    (first, second), _ = text_hash(text)
    return (first << 31) | second


def no_candidates() -> Candidates:
    """Return a table without candidates; compiled code makes it longer as need be."""
    slots = np.full((1 << 16, 2), FREE, np.int64)
    return Candidates(slots, np.empty((0, 6), np.int64), np.empty((0, 2), np.int64), np.zeros(3, np.int64))


_COMPILED_FILES: Final = ("mining_state.py", "mining_table.py", "mining_core.py")


def _hash_of_sources() -> str:
    sources = b"".join((Path(__file__).parent / name).read_bytes() for name in _COMPILED_FILES)
    return hashlib.sha256(sources).hexdigest()[:16]


_SOURCES: Final = _hash_of_sources()


def compiled(function: Callable[..., Any]) -> Any:
    """Compile by numba, once for all processes where a cache can be kept.

    numba takes a function from its cache as long as the function's own file is unchanged, whatever became of the
    functions and constants of other files. The cache goes by the qualified name, so that is made to name all sources.
    """
    function.__qualname__ = f"{function.__name__}-{_SOURCES}"
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # no folder for the cache can be written
        return numba.njit(function)
