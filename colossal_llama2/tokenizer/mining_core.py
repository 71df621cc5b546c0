"""The compiled heart of mining: byte-pair encoding continued on a text that is tokens already."""

from __future__ import annotations

import heapq

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
    PRIMES,
    QUEUED,
    TAKEN,
    Int32,
    Int64,
    Mine,
    Text,
    compiled,
)
from colossal_llama2.tokenizer.mining_table import (
    Waiting,
    add_pair,
    enter,
    find,
    join_hash,
    key_at,
    record,
    remove_pair,
    wait,
    with_room,
)

_BLOCK = 1 << 16


@compiled
def mine(work: Mine, known: Int64, missing: Int64, banned: Int64, span: tuple[int, int]) -> Int64:
    """Find new pieces one after the other, the one that saves most first, and join them in the text.

    Of equal ones the shorter is taken first, then the one whose hash is lower, so the order of documents is all one.

    Args:
        work: the corpus, encoded by the pieces there are and changed in place; the pieces, whose rows for new ones are
            filled in here; the rules; no candidates yet.
        known: ids of the pieces that a join can give.
        missing: [M, 2] ids of characters of the text that are no piece yet, and how many tokens a use of each saves.
        banned: hashes of what shall not become a piece.
        span: the id of the first new piece, and the id where to stop.

    Returns:
        [N, 3] what each new piece is made of: two ids, or the id of the missing character and -1; and its score.
    """
    work = _collect(work, known, missing, banned)
    queue = [(0, 0, 0, -1)]
    for row in range(work.candidates.sizes[ENTRIES]):
        wait(work, queue, row)
    found = np.empty((span[1] - span[0], 3), np.int64)
    piece = span[0]
    while piece < span[1]:
        row, places = _best(work, queue)
        if row < 0:
            break
        work = with_room(work, 2 * len(places) + 2)
        key, single = work.candidates.entries[row, KEY], work.candidates.entries[row, LENGTH] == 1
        left, right = _describe(work, places[0], piece, single)
        new = found[piece - span[0]]
        new[0], new[1], new[2] = left, right, _score(work, row, places)[0]
        work.candidates.slots[find(work.candidates, key), 1] = -1 - piece
        work.candidates.entries[row, QUEUED] = 0
        for other in _activate(work, places) if single else _join_all(work, places, piece):
            wait(work, queue, other)
        piece += 1
    return found[: piece - span[0]]


@compiled
def _best(work: Mine, queue: Waiting) -> tuple[int, Int32]:
    """Take the candidate with the highest score out of the queue, and return its places; none where none is left."""
    while len(queue):
        score, length, key, row = heapq.heappop(queue)
        entries = work.candidates.entries
        if row < 0 or -score != entries[row, QUEUED]:
            continue  # waits under another score by now
        entries[row, QUEUED] = 0
        if entries[row, COUNT] < -score:
            wait(work, queue, row)
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


@compiled
def _collect(work: Mine, known: Int64, missing: Int64, banned: Int64) -> Mine:
    """Enter the pieces there are, the characters that are missing, and every pair of the text."""
    work = with_room(work, len(known) + len(missing) + len(banned))
    pieces, candidates = work.pieces, work.candidates
    for piece in known:
        key = (pieces.hashes[piece, 0] << 31) | pieces.hashes[piece, 1]
        slot = find(candidates, key)
        candidates.sizes[TAKEN] += candidates.slots[slot, 0] == FREE
        candidates.slots[slot, 0], candidates.slots[slot, 1] = key, -1 - piece
    for key in banned:
        enter(candidates, find(candidates, key), key, 0, 0)  # a use of it saves nothing, so it never waits
    row_of = np.full(len(pieces.lengths), -1, np.int64)
    for piece, gain in missing:
        key = (pieces.hashes[piece, 0] << 31) | pieces.hashes[piece, 1]
        slot = find(candidates, key)
        if candidates.slots[slot, 0] == FREE:
            row_of[piece] = enter(candidates, slot, key, 1, gain)
    tokens = work.text.tokens
    for place in range(len(tokens)):
        if place % _BLOCK == 0:
            work = with_room(work, 2 * _BLOCK)
        if tokens[place] >= 0 and row_of[tokens[place]] >= 0:
            record(work, row_of[tokens[place]], place)
        add_pair(work, place)
    return work


@compiled
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
        if single or key_at(work, place) == candidates.entries[row, KEY]:
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


@compiled
def _score(work: Mine, row: int, places: Int32) -> tuple[int, int]:
    """Return how many tokens joining in these places saves, weighted, and how many documents they lie in."""
    total, number, document = 0, 0, -1
    for place in places:
        number += work.text.documents[place] != document
        document = work.text.documents[place]
        total += work.text.weights[document]
    return total * work.candidates.entries[row, GAIN], number


@compiled
def _describe(work: Mine, place: int, piece: int, single: bool) -> tuple[int, int]:
    """Fill in what is known of a new piece that stands in a place; return what it is made of."""
    text, pieces = work.text, work.pieces
    left = text.tokens[place]
    if single:
        pieces.flags[left] |= JOINABLE
        return left, -1
    right = text.tokens[text.following[place]]
    for half in range(2):
        pieces.hashes[piece, half] = join_hash(pieces, left, right, half)
        pieces.powers[piece, half] = pieces.powers[left, half] * pieces.powers[right, half] % PRIMES[half]
    pieces.lengths[piece] = pieces.lengths[left] + pieces.lengths[right]
    pieces.scripts[piece] = max(pieces.scripts[left], pieces.scripts[right])
    pieces.flags[piece] = pieces.flags[left] | pieces.flags[right]
    pieces.ranks[piece] = piece
    return left, right


@compiled
def _activate(work: Mine, places: Int32) -> list[int]:
    """Let a character that has become a piece take part in joins; return the candidates that gained by it."""
    touched = [-1]
    for place in places:
        touched.append(add_pair(work, place))
        before = work.text.previous[place]
        if before >= 0 and work.text.tokens[before] != work.text.tokens[place]:
            touched.append(add_pair(work, before))
    return touched


@compiled
def _join_all(work: Mine, places: Int32, piece: int) -> list[int]:
    """Make a piece of a candidate in all its places; return the candidates that gained by it."""
    touched = [-1]
    for place in places:
        # A join that followed from an earlier one may have taken a part of this one.
        if _piece_at(work, place) == piece:
            at = _join(work, place, piece)
            touched.append(add_pair(work, work.text.previous[at]))
            touched.append(add_pair(work, at))
    return touched


@compiled
def _join(work: Mine, place: int, piece: int) -> int:
    """Join the pair that begins in a place, and all that follows from it; return where the token stands in the end.

    The new token may make a piece with its neighbour at once, one that is ranked before; SentencePiece then joins it
    before anything else. Pairs are uncounted as they go; those of the final token are not counted yet.
    """
    text, ranks = work.text, work.pieces.ranks
    remove_pair(work, text.previous[place])
    remove_pair(work, place)
    remove_pair(work, text.following[place])
    _cover_next(text, place, piece)
    while True:
        before, after = text.previous[place], text.following[place]
        left, right = _piece_at(work, before), _piece_at(work, place)
        if left < 0 and right < 0:
            return place
        if right < 0 or (left >= 0 and ranks[left] <= ranks[right]):
            remove_pair(work, text.previous[before])
            _cover_next(text, before, left)
            place = before
        else:
            remove_pair(work, after)
            _cover_next(text, place, right)


@compiled
def _cover_next(text: Text, place: int, piece: int) -> None:
    """Let a piece stand for the token of a place and the one behind it."""
    gone = text.following[place]
    text.tokens[place], text.tokens[gone] = piece, GONE
    text.following[place] = text.following[gone]
    if text.following[gone] >= 0:
        text.previous[text.following[gone]] = place


@compiled
def _piece_at(work: Mine, place: int) -> int:
    """Return the id of the piece that the pair beginning in a place makes, -1 where it makes none."""
    key = key_at(work, place)
    slot = find(work.candidates, key)
    if key < 0 or work.candidates.slots[slot, 0] == FREE:
        return -1
    return max(-1 - work.candidates.slots[slot, 1], -1)
