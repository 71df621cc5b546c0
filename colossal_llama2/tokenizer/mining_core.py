"""The compiled heart of mining: byte-pair encoding continued on a text that is tokens already.

All of it stands in this one file: numba takes a function from its cache as long as the function's own file is
unchanged, whatever became of the functions it calls.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from colossal_llama2.tokenizer.mining_state import (
    COUNT,
    ENTRIES,
    FREE,
    GAIN,
    GONE,
    JOINABLE,
    KEY,
    LAST,
    LENGTH,
    LETTER,
    MARK,
    OTHER,
    PRIMES,
    QUEUED,
    RECORDS,
    TAKEN,
    Candidates,
    Int32,
    Int64,
    Mine,
    Pieces,
    Rules,
    Text,
)

_BLOCK = 1 << 16
_Waiting = list[tuple[int, int, int, int]]


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile by numba, once for all processes where a cache can be kept."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # no folder for the cache can be written
        return numba.njit(function)


@_compiled
def mine(work: Mine, known: Int64, missing: Int64, wanted: Int64, span: tuple[int, int]) -> Int64:
    """Find new pieces one after the other, the one that saves most first, and join them in the text.

    Of equal ones the shorter is taken first, then the one whose hash is lower, so the order of documents is all one.

    Args:
        work: the corpus, encoded by the pieces there are and changed in place; the pieces, whose rows for new ones are
            filled in here; the rules; no candidates yet.
        known: ids of the pieces that a join can give.
        missing: [M, 2] ids of characters of the text that are no piece yet, and how many tokens a use of each saves.
        wanted: hashes of pieces to begin with, in this order; those that stand nowhere by then are passed over.
        span: the id of the first new piece, and the id where to stop.

    Returns:
        [N, 3] what each new piece is made of: two ids, or the id of the missing character and -1; and its score.
    """
    work = _collect(work, known, missing)
    queue = [(0, 0, 0, -1)]
    for row in range(work.candidates.sizes[ENTRIES]):
        _wait(work, queue, row)
    found = np.empty((span[1] - span[0], 3), np.int64)
    piece, at = span[0], 0
    while piece < span[1]:
        row, places = _wanted(work, wanted[at]) if at < len(wanted) else _best(work, queue)
        at += 1
        if len(places) == 0:
            if at > len(wanted):
                break
            continue
        work = _with_room(work, 2 * len(places) + 2)
        key, single = work.candidates.entries[row, KEY], work.candidates.entries[row, LENGTH] == 1
        left, right = _describe(work, places[0], piece, single)
        new = found[piece - span[0]]
        new[0], new[1], new[2] = left, right, _score(work, row, places)[0]
        work.candidates.slots[_find(work.candidates, key), 1] = -1 - piece
        work.candidates.entries[row, QUEUED] = 0
        for other in _activate(work, places) if single else _join_all(work, places, piece):
            _wait(work, queue, other)
        piece += 1
    return found[: piece - span[0]]


@_compiled
def _wanted(work: Mine, key: int) -> tuple[int, Int32]:
    """Return the candidate of a hash and its places; none where it is no candidate."""
    slot = _find(work.candidates, key)
    row = work.candidates.slots[slot, 1]
    if work.candidates.slots[slot, 0] == FREE or row < 0:
        return -1, np.empty(0, np.int32)
    return row, _places_of(work, row)


@_compiled
def _best(work: Mine, queue: _Waiting) -> tuple[int, Int32]:
    """Take the candidate with the highest score out of the queue, and return its places; none where none is left."""
    while len(queue):
        score, length, key, row = heapq.heappop(queue)
        entries = work.candidates.entries
        if row < 0 or -score != entries[row, QUEUED]:
            continue  # waits under another score by now
        entries[row, QUEUED] = 0
        if entries[row, COUNT] < -score:
            _wait(work, queue, row)
            continue
        places = _places_of(work, row)
        exact, documents = _score(work, row, places)
        if len(places) < work.rules.min_count or documents < work.rules.min_documents:
            continue
        if exact == -score:
            return row, places
        entries[row, QUEUED] = exact  # some uses overlap
        heapq.heappush(queue, (-exact, length, key, row))
    return -1, np.empty(0, np.int32)


@_compiled
def _collect(work: Mine, known: Int64, missing: Int64) -> Mine:
    """Enter the pieces there are, the characters that are missing, and every pair of the text."""
    work = _with_room(work, len(known) + len(missing))
    pieces, candidates = work.pieces, work.candidates
    for piece in known:
        key = (pieces.hashes[piece, 0] << 31) | pieces.hashes[piece, 1]
        slot = _find(candidates, key)
        candidates.sizes[TAKEN] += candidates.slots[slot, 0] == FREE
        candidates.slots[slot, 0], candidates.slots[slot, 1] = key, -1 - piece
    row_of = np.full(len(pieces.lengths), -1, np.int64)
    for piece, gain in missing:
        key = (pieces.hashes[piece, 0] << 31) | pieces.hashes[piece, 1]
        row_of[piece] = _enter(candidates, _find(candidates, key), key, 1, gain)
    tokens = work.text.tokens
    for place in range(len(tokens)):
        if place % _BLOCK == 0:
            work = _with_room(work, 2 * _BLOCK)
        if tokens[place] >= 0 and row_of[tokens[place]] >= 0:
            _record(work, row_of[tokens[place]], place)
        _add_pair(work, place)
    return work


@_compiled
def _wait(work: Mine, queue: _Waiting, row: int) -> None:
    """Put a candidate into the queue under its count, unless it waits there under as much already."""
    entries = work.candidates.entries
    if row >= 0 and entries[row, COUNT] > entries[row, QUEUED]:
        entries[row, QUEUED] = entries[row, COUNT]
        heapq.heappush(queue, (-entries[row, COUNT], entries[row, LENGTH], entries[row, KEY], row))


@_compiled
def _places_of(work: Mine, row: int) -> Int32:
    """Return the places where a candidate stands now, in order, those left out that overlap one before."""
    text, candidates = work.text, work.candidates
    single = candidates.entries[row, LENGTH] == 1
    found = np.empty(64, np.int32)
    size = 0
    at = candidates.entries[row, LAST]
    while at >= 0:
        place = candidates.records[at, 0]
        at = candidates.records[at, 1]
        if single or _key_at(work, place) == candidates.entries[row, KEY]:
            if size == len(found):
                found = np.concatenate((found, np.empty(size, np.int32)))
            found[size] = place
            size += 1
    found = np.unique(found[:size])
    kept, end = 0, -1  # the right token of the last pair kept
    for place in found:
        if single or place != end:
            found[kept] = place
            kept += 1
            end = text.following[place]
    return found[:kept]


@_compiled
def _score(work: Mine, row: int, places: Int32) -> tuple[int, int]:
    """Return how many tokens joining in these places saves, weighted, and how many documents they lie in."""
    total, number, document = 0, 0, -1
    for place in places:
        number += work.text.documents[place] != document
        document = work.text.documents[place]
        total += work.text.weights[document]
    return total * work.candidates.entries[row, GAIN], number


@_compiled
def _describe(work: Mine, place: int, piece: int, single: bool) -> tuple[int, int]:
    """Fill in what is known of a new piece that stands in a place; return what it is made of."""
    text, pieces = work.text, work.pieces
    left = text.tokens[place]
    if single:
        pieces.flags[left] |= JOINABLE
        return left, -1
    right = text.tokens[text.following[place]]
    for half in range(2):
        pieces.hashes[piece, half] = _join_hash(pieces, left, right, half)
        pieces.powers[piece, half] = pieces.powers[left, half] * pieces.powers[right, half] % PRIMES[half]
    pieces.lengths[piece] = pieces.lengths[left] + pieces.lengths[right]
    pieces.scripts[piece] = max(pieces.scripts[left], pieces.scripts[right])
    pieces.flags[piece] = pieces.flags[left] | pieces.flags[right]
    pieces.ranks[piece] = piece
    return left, right


@_compiled
def _activate(work: Mine, places: Int32) -> list[int]:
    """Let a character that has become a piece take part in joins; return the candidates that gained by it."""
    touched = [-1]
    for place in places:
        touched.append(_add_pair(work, place))
        before = work.text.previous[place]
        if before >= 0 and work.text.tokens[before] != work.text.tokens[place]:
            touched.append(_add_pair(work, before))
    return touched


@_compiled
def _join_all(work: Mine, places: Int32, piece: int) -> list[int]:
    """Make a piece of a candidate in all its places; return the candidates that gained by it."""
    touched = [-1]
    for place in places:
        # A join that followed from an earlier one may have taken a part of this one.
        if _piece_at(work, place) == piece:
            at = _join(work, place, piece)
            touched.append(_add_pair(work, work.text.previous[at]))
            touched.append(_add_pair(work, at))
    return touched


@_compiled
def _join(work: Mine, place: int, piece: int) -> int:
    """Join the pair that begins in a place, and all that follows from it; return where the token stands in the end.

    The new token may make a piece with its neighbour at once, one that is ranked before; SentencePiece then joins it
    before anything else. Pairs are uncounted as they go; those of the final token are not counted yet.
    """
    text, ranks = work.text, work.pieces.ranks
    _remove_pair(work, text.previous[place])
    _remove_pair(work, place)
    _remove_pair(work, text.following[place])
    _cover_next(text, place, piece)
    while True:
        before, after = text.previous[place], text.following[place]
        left, right = _piece_at(work, before), _piece_at(work, place)
        if left < 0 and right < 0:
            return place
        if right < 0 or (left >= 0 and ranks[left] <= ranks[right]):
            _remove_pair(work, text.previous[before])
            _cover_next(text, before, left)
            place = before
        else:
            _remove_pair(work, after)
            _cover_next(text, place, right)


@_compiled
def _cover_next(text: Text, place: int, piece: int) -> None:
    """Let a piece stand for the token of a place and the one behind it."""
    gone = text.following[place]
    text.tokens[place], text.tokens[gone] = piece, GONE
    text.following[place] = text.following[gone]
    if text.following[gone] >= 0:
        text.previous[text.following[gone]] = place


@_compiled
def _add_pair(work: Mine, place: int) -> int:
    """Count the pair that begins in a place; return its candidate, or -1 where the pair can never be a piece."""
    key = _key_at(work, place)
    if key < 0:
        return -1
    candidates, lengths = work.candidates, work.pieces.lengths
    left, right = work.text.tokens[place], work.text.tokens[work.text.following[place]]
    slot = _find(candidates, key)
    row = candidates.slots[slot, 1]
    if candidates.slots[slot, 0] == FREE:
        if not _may_join(work.pieces, work.rules, left, right):
            return -1
        row = _enter(candidates, slot, key, lengths[left] + lengths[right], 1)
    if row >= 0:
        _record(work, row, place)
    return row


@_compiled
def _remove_pair(work: Mine, place: int) -> None:
    """Take back what `_add_pair` counted for the pair that begins in a place; its record stays, out of date."""
    key = _key_at(work, place)
    if key < 0:
        return
    candidates = work.candidates
    slot = _find(candidates, key)
    row = candidates.slots[slot, 1]
    if candidates.slots[slot, 0] != FREE and row >= 0:
        candidates.entries[row, COUNT] -= work.text.weights[work.text.documents[place]]


@_compiled
def _key_at(work: Mine, place: int) -> int:
    """Return the hash of the pair that begins in a place, -1 where none does that could be joined."""
    text, pieces = work.text, work.pieces
    if place < 0 or text.tokens[place] < 0 or text.following[place] < 0:
        return -1
    left, right = text.tokens[place], text.tokens[text.following[place]]
    if right < 0 or not (pieces.flags[left] & pieces.flags[right] & JOINABLE):
        return -1
    return (_join_hash(pieces, left, right, 0) << 31) | _join_hash(pieces, left, right, 1)


@_compiled
def _piece_at(work: Mine, place: int) -> int:
    """Return the id of the piece that the pair beginning in a place makes, -1 where it makes none."""
    key = _key_at(work, place)
    slot = _find(work.candidates, key)
    if key < 0 or work.candidates.slots[slot, 0] == FREE:
        return -1
    return max(-1 - work.candidates.slots[slot, 1], -1)


@_compiled
def _join_hash(pieces: Pieces, left: int, right: int, half: int) -> int:
    joined = pieces.hashes[left, half] * pieces.powers[right, half] + pieces.hashes[right, half]
    return joined % PRIMES[half]


@_compiled
def _may_join(pieces: Pieces, rules: Rules, left: int, right: int) -> bool:
    flags = pieces.flags[left] | pieces.flags[right]
    if pieces.lengths[left] + pieces.lengths[right] > rules.max_length:
        return False
    if flags & rules.forbidden or (flags & rules.required) != rules.required:
        return False
    if rules.mark_first and pieces.flags[right] & MARK:
        return False
    if rules.letters_apart and flags & LETTER and flags & OTHER:
        return False
    first, second = pieces.scripts[left], pieces.scripts[right]
    return not (rules.one_script and first and second and first != second)


@_compiled
def _find(candidates: Candidates, key: int) -> int:
    """Return the slot that holds a key, or the free one where it belongs."""
    slots = candidates.slots
    mask = len(slots) - 1
    slot = (key ^ (key >> 29)) & mask
    while slots[slot, 0] != FREE and slots[slot, 0] != key:
        slot = (slot + 1) & mask
    return slot


@_compiled
def _enter(candidates: Candidates, slot: int, key: int, length: int, gain: int) -> int:
    """Enter a candidate into a free slot and return its row."""
    row = candidates.sizes[ENTRIES]
    candidates.slots[slot, 0], candidates.slots[slot, 1] = key, row
    candidates.entries[row] = np.array([key, 0, 0, -1, length, gain])
    candidates.sizes[ENTRIES] += 1
    candidates.sizes[TAKEN] += 1
    return row


@_compiled
def _record(work: Mine, row: int, place: int) -> None:
    """Count one more use of a candidate and note where it stands."""
    entries, records, sizes = work.candidates.entries, work.candidates.records, work.candidates.sizes
    entries[row, COUNT] += work.text.weights[work.text.documents[place]] * entries[row, GAIN]
    records[sizes[RECORDS], 0], records[sizes[RECORDS], 1] = place, entries[row, LAST]
    entries[row, LAST] = sizes[RECORDS]
    sizes[RECORDS] += 1


@_compiled
def _with_room(work: Mine, extra: int) -> Mine:
    """Return the same with room for so many more candidates and records."""
    slots, entries, records, sizes = work.candidates
    if sizes[ENTRIES] + extra > len(entries):
        entries = np.concatenate((entries, np.empty((len(entries) // 2 + extra, 6), np.int64)))
    if sizes[RECORDS] + extra > len(records):
        records = np.concatenate((records, np.empty((len(records) // 2 + extra, 2), np.int64)))
    size = len(slots)
    while 2 * (sizes[TAKEN] + extra) > size:
        size *= 2
    room = Candidates(slots, entries, records, sizes)
    if size > len(slots):
        room = Candidates(np.full((size, 2), FREE, np.int64), entries, records, sizes)
        for key, row in slots:
            if key != FREE:
                slot = _find(room, key)
                room.slots[slot, 0], room.slots[slot, 1] = key, row
    return Mine(work.text, work.pieces, work.rules, room)
