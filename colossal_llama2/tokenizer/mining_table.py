"""Compiled: the table of candidates, and the pairs of neighbours that are counted in it."""

from __future__ import annotations

import heapq

import numpy as np

from colossal_llama2.tokenizer.mining_state import (
    COUNT,
    ENTRIES,
    FREE,
    GAIN,
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
    Mine,
    Pieces,
    Rules,
    compiled,
)

Waiting = list[tuple[int, int, int, int]]
"""A queue of (less its score, characters, hash, row)."""


@compiled
def add_pair(work: Mine, place: int) -> int:
    """Count the pair that begins in a place; return its candidate, or -1 where the pair can never be a piece."""
    key = key_at(work, place)
    if key < 0:
        return -1
    candidates, lengths = work.candidates, work.pieces.lengths
    left, right = work.text.tokens[place], work.text.tokens[work.text.following[place]]
    slot = find(candidates, key)
    row = candidates.slots[slot, 1]
    if candidates.slots[slot, 0] == FREE:
        if not may_join(work.pieces, work.rules, left, right):
            return -1
        row = enter(candidates, slot, key, lengths[left] + lengths[right], 1)
    if row >= 0:
        record(work, row, place)
    return row


@compiled
def remove_pair(work: Mine, place: int) -> None:
    """Take back what `_add_pair` counted for the pair that begins in a place; its record stays, out of date."""
    key = key_at(work, place)
    if key < 0:
        return
    candidates = work.candidates
    slot = find(candidates, key)
    row = candidates.slots[slot, 1]
    if candidates.slots[slot, 0] != FREE and row >= 0:
        candidates.entries[row, COUNT] -= work.text.weights[work.text.documents[place]]


@compiled
def key_at(work: Mine, place: int) -> int:
    """Return the hash of the pair that begins in a place, -1 where none does that could be joined."""
    text, pieces = work.text, work.pieces
    if place < 0 or text.tokens[place] < 0 or text.following[place] < 0:
        return -1
    left, right = text.tokens[place], text.tokens[text.following[place]]
    if right < 0 or not (pieces.flags[left] & pieces.flags[right] & JOINABLE):
        return -1
    return (join_hash(pieces, left, right, 0) << 31) | join_hash(pieces, left, right, 1)


@compiled
def join_hash(pieces: Pieces, left: int, right: int, half: int) -> int:
    joined = pieces.hashes[left, half] * pieces.powers[right, half] + pieces.hashes[right, half]
    return joined % PRIMES[half]


@compiled
def may_join(pieces: Pieces, rules: Rules, left: int, right: int) -> bool:
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


@compiled
def wait(work: Mine, queue: Waiting, row: int) -> None:
    """Put a candidate into the queue under its count, unless it waits there under as much already."""
    entries = work.candidates.entries
    if row >= 0 and entries[row, COUNT] > entries[row, QUEUED]:
        entries[row, QUEUED] = entries[row, COUNT]
        heapq.heappush(queue, (-entries[row, COUNT], entries[row, LENGTH], entries[row, KEY], row))


@compiled
def find(candidates: Candidates, key: int) -> int:
    """Return the slot that holds a key, or the free one where it belongs."""
    slots = candidates.slots
    mask = len(slots) - 1
    slot = (key ^ (key >> 29)) & mask
    while slots[slot, 0] != FREE and slots[slot, 0] != key:
        slot = (slot + 1) & mask
    return slot


@compiled
def enter(candidates: Candidates, slot: int, key: int, length: int, gain: int) -> int:
    """Enter a candidate into a free slot and return its row."""
    row = candidates.sizes[ENTRIES]
    candidates.slots[slot, 0], candidates.slots[slot, 1] = key, row
    candidates.entries[row] = np.array([key, 0, 0, -1, length, gain])
    candidates.sizes[ENTRIES] += 1
    candidates.sizes[TAKEN] += 1
    return row


@compiled
def record(work: Mine, row: int, place: int) -> None:
    """Count one more use of a candidate and note where it stands."""
    entries, records, sizes = work.candidates.entries, work.candidates.records, work.candidates.sizes
    entries[row, COUNT] += work.text.weights[work.text.documents[place]] * entries[row, GAIN]
    records[sizes[RECORDS], 0], records[sizes[RECORDS], 1] = place, entries[row, LAST]
    entries[row, LAST] = sizes[RECORDS]
    sizes[RECORDS] += 1


@compiled
def with_room(work: Mine, extra: int) -> Mine:
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
                slot = find(room, key)
                room.slots[slot, 0], room.slots[slot, 1] = key, row
    return Mine(work.text, work.pieces, work.rules, room)
