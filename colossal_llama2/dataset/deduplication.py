"""Which documents of a corpus stood before: equal to the character, or nearly so."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.text_hashes import SIGNATURE_SLOTS, Deduplicate, hash_of_chunks, hash_version, text_hashes

__all__ = [
    "Deduplicate",
    "find_duplicates",
    "find_originals",
    "hash_of_chunks",
    "hash_version",
    "rows_per_band",
    "text_hashes",
]

_FOUND: Final = 0.97  # share of the pairs exactly at the threshold that must meet in a band
_SORTED_AT_ONCE = 1 << 23
_COMPARED_AT_ONCE = 1 << 15
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)

Hashes = Sequence[npt.NDArray[Any]]
Indices = npt.NDArray[np.int64]


def find_duplicates(hashes: Hashes, deduplicate: Deduplicate, threshold: float) -> list[npt.NDArray[np.bool_]]:
    """Tell which documents are left out, because their text, or nearly their text, stood before.

    The first in input order stays. What comes out depends on the hashes and their order alone.

    Args:
        hashes: of each shard, what `text_hashes` gave. It is gone through several times, one entry at a time, so that
            any sequence will do which reads or maps them when they are asked for.
        deduplicate: "exact" or "minhash".
        threshold: with minhash, share of shingles in common (of those that either text has) from which two texts are
            the same. It is estimated with a standard deviation of 0.035; a text that is alike to one that is alike to
            a third goes with both.

    Returns:
        A mask for each shard.
    """
    originals = find_originals(hashes, deduplicate, threshold)
    left_out = originals != np.arange(len(originals))
    bounds = np.cumsum([0, *(len(part) for part in hashes)]).tolist()
    return [left_out[begin:end] for begin, end in itertools.pairwise(bounds)]


def find_originals(hashes: Hashes, deduplicate: Deduplicate, threshold: float) -> Indices:
    """Return [D] for each document the one that stays for it: an earlier one, or itself; see `find_duplicates`.

    Holds 8 bytes a document, and about 60 for each of up to 8 million that are sorted at once.
    """
    table = _Table(hashes)
    originals = np.arange(table.size)
    if deduplicate == "exact":
        for places, keys in table.keyed(0, 1):
            _point_to_first(originals, places, [keys, table.words(places, 1)])
        return originals
    rows = rows_per_band(threshold)
    for band in range(SIGNATURE_SLOTS // rows):
        for places, keys in table.keyed(band * rows, rows):
            for pairs in _neighbours(places, keys):
                _unite(originals, *_alike(table, originals, pairs, threshold))
    return _roots(originals, originals)


def rows_per_band(threshold: float) -> int:
    """Return how many slots of a signature two texts must share to be compared.

    As many as leave a pair at the threshold a chance of 97% to share them in one of the bands.
    """
    fitting = [
        rows for rows in range(1, SIGNATURE_SLOTS) if 1 - (1 - threshold**rows) ** (SIGNATURE_SLOTS // rows) >= _FOUND
    ]
    return max(fitting)


class _Table:
    """The hashes of all shards as one table, read part by part."""

    def __init__(self, hashes: Hashes) -> None:
        self._hashes = hashes
        self._ends = np.cumsum([0, *(len(part) for part in hashes)])
        self.size = int(self._ends[-1])

    def keyed(self, first: int, count: int) -> Iterator[tuple[Indices, npt.NDArray[np.uint64]]]:
        """Yield (documents in order, their keys), those of equal keys together in one answer.

        A key mixes `count` columns from `first` on. Of a large table only keys of some leading bits come at once.
        """
        bits = max(0, (self.size - 1) // _SORTED_AT_ONCE).bit_length()
        for wanted in range(1 << bits):
            places, keys = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.uint64)]
            for number, part in enumerate(self._hashes):
                mixed = _mix(part[:, first : first + count])
                found = np.flatnonzero(mixed >> np.uint64(64 - bits) == wanted) if bits else np.arange(len(mixed))
                places.append(found + self._ends[number])
                keys.append(mixed[found])
            yield np.concatenate(places), np.concatenate(keys)

    def words(self, places: Indices, column: int) -> npt.NDArray[Any]:
        """Return a column of some documents, in order."""
        return self._gather(places, column)

    def rows(self, places: Indices) -> npt.NDArray[Any]:
        """Return the rows of some documents, in any order."""
        unique, inverse = np.unique(places, return_inverse=True)
        return self._gather(unique, slice(None))[inverse]

    def _gather(self, places: Indices, columns: Any) -> npt.NDArray[Any]:
        parts = np.searchsorted(self._ends, places, side="right") - 1
        bounds = np.searchsorted(parts, np.arange(len(self._hashes) + 1))
        found = [
            self._hashes[number][places[begin:end] - self._ends[number], columns]
            for number, (begin, end) in enumerate(itertools.pairwise(bounds))
            if begin < end
        ]
        return np.concatenate(found) if found else np.zeros(0, dtype=np.uint64)


def _mix(columns: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    keys = np.zeros(len(columns), dtype=np.uint64)
    for column in columns.T:
        keys = (keys ^ column.astype(np.uint64)) * _MULTIPLIER
        keys ^= keys >> np.uint64(31)
    return keys


def _runs(columns: Sequence[npt.NDArray[Any]]) -> tuple[Indices, Indices]:
    """Return an order in which equal rows lie together, the earlier first, and for each the run's first one."""
    order = np.lexsort(columns[::-1])
    changes = np.zeros(len(order), dtype=np.bool_)
    changes[:1] = True
    for column in columns:
        changes[1:] |= column[order[1:]] != column[order[:-1]]
    starts = np.flatnonzero(changes)
    return order, order[starts[np.cumsum(changes) - 1]] if len(order) else order


def _point_to_first(originals: Indices, places: Indices, columns: Sequence[npt.NDArray[Any]]) -> None:
    order, first = _runs(columns)
    originals[places[order]] = places[first]


def _neighbours(places: Indices, keys: npt.NDArray[np.uint64]) -> Iterator[tuple[Indices, Indices]]:
    """Yield pairs of documents that share a key: each with the first that has it, and with the one before itself."""
    order, first = _runs([keys])
    later = np.flatnonzero(order != first)
    for begin in range(0, len(later), _COMPARED_AT_ONCE):
        some = later[begin : begin + _COMPARED_AT_ONCE]
        members, firsts, before = places[order[some]], places[first[some]], places[order[some - 1]]
        yield members, firsts
        apart = before != firsts
        yield members[apart], before[apart]


def _alike(
    table: _Table, originals: Indices, pairs: tuple[Indices, Indices], threshold: float
) -> tuple[Indices, Indices]:
    """Return those of the pairs that are not known to be the same, and are."""
    left, right = pairs
    apart = _roots(originals, left) != _roots(originals, right)
    left, right = left[apart], right[apart]
    if not len(left):
        return left, right
    same = (table.rows(left) == table.rows(right)).mean(axis=1) >= threshold
    return left[same], right[same]


def _unite(originals: Indices, left: Indices, right: Indices) -> None:
    """Let the documents of each pair, and all that go with them, go with the first of them."""
    while True:
        one, other = _roots(originals, left), _roots(originals, right)
        originals[left], originals[right] = one, other  # the next way is shorter
        apart = one != other
        if not apart.any():
            return
        np.minimum.at(originals, np.maximum(one, other)[apart], np.minimum(one, other)[apart])


def _roots(originals: Indices, documents: Indices) -> Indices:
    """Follow documents to the ones that they go with and that go with none."""
    found = originals[documents]
    while True:
        further = originals[found]
        if (further == found).all():
            return found
        found = further
