"""From the documents' lengths alone to a plan: which goes to which bucket, how often, and what is held out.

The plan is made a block of shards at a time and written to disk, so that it takes no more memory for a large corpus
than for one of a million documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.buckets import BucketAssigner, level_rows
from colossal_llama2.dataset.encoded import TOKENS_FILE, EncodedShard
from colossal_llama2.dataset.selecting import ShareTaker, copies_of

MEMBER: Final = np.dtype([("start", "<i8"), ("tokens", "<i4"), ("unlearned", "<i4"), ("category", "<i4")])
"""A document of a bucket: its first token, counted through all shards; tokens; unlearned ones; category number."""
HOLDOUT_FILE: Final = "holdout.bin"
SHARDS_FILE: Final = "shards.json"
BLOCK_DOCUMENTS: Final = 1_000_000
_HOLDOUT_KEY, _WEIGHT_KEY = 2, 3
# Levelling moves up to a row of a bucket: of so many rows, less than the balance of the categories would notice.
_ROWS_WORTH_LEVELLING: Final = 64


@dataclass(frozen=True)
class Selection:
    """What is taken of a corpus, and how it is divided.

    Attributes:
        num_buckets: how many buckets.
        max_length: tokens a row can hold.
        seed: decides every random choice.
        weights: [C] how often documents of each category are taken.
        holdout: share of each category's documents that is set aside.
    """

    num_buckets: int
    max_length: int
    seed: int
    weights: npt.NDArray[np.float64]
    holdout: float


@dataclass(frozen=True)
class Tally:
    """Documents, characters and tokens of each category, [C] int64 each."""

    documents: npt.NDArray[np.int64]
    characters: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]

    @staticmethod
    def zeros(num_categories: int) -> Tally:
        """Begin at nothing."""
        return Tally(*(np.zeros(num_categories, dtype=np.int64) for _ in range(3)))

    def add(self, block: npt.NDArray[Any], times: npt.NDArray[Any]) -> None:
        """Count each document of a block as often as `times` says."""
        for sums, values in (
            (self.documents, 1),
            (self.characters, block["characters"]),
            (self.tokens, block["tokens"]),
        ):
            sums += _summed(block["category"], np.broadcast_to(times * values, len(block)), len(sums))


@dataclass
class Plan:
    """Where every document goes.

    Attributes:
        folder: one file of `MEMBER` a bucket, and one of what is held out.
        category_names: sorted.
        seen: all documents of the input.
        duplicates: those left out because their text stood before.
        held_out: those set aside.
        repeated: further copies, by category weights.
        thinned: those left out by category weights.
        documents_per_bucket: [C, B] int64.
        tokens_per_bucket: [C, B] int64.
        characters_per_bucket: [B] int64.
        straddling: [C] documents in which a token lies across source and target.
    """

    folder: Path
    category_names: list[str]
    seen: Tally
    duplicates: Tally
    held_out: Tally
    repeated: Tally
    thinned: Tally
    documents_per_bucket: npt.NDArray[np.int64]
    tokens_per_bucket: npt.NDArray[np.int64]
    characters_per_bucket: npt.NDArray[np.int64]
    straddling: npt.NDArray[np.int64]

    def member_file(self, bucket: int) -> Path:
        """Return the file that lists a bucket's documents."""
        return self.folder / f"{bucket:05d}.bin"


def category_names(shards: Sequence[EncodedShard]) -> list[str]:
    """List the categories of all shards, sorted."""
    return sorted({name for shard in shards for name in shard.categories})


def make_plan(
    shards: Sequence[EncodedShard],
    duplicates: Sequence[npt.NDArray[np.bool_]] | None,
    selection: Selection,
    folder: Path,
) -> Plan:
    """Plan a corpus and write the plan down.

    Args:
        shards: in input order.
        duplicates: for each shard, [D] which documents are left out; None where there are none.
        selection: what is taken and how it is divided.
        folder: an empty folder.
    """
    names = category_names(shards)
    planner = _Planner(names, selection, folder)
    for block, left_out in _blocks(shards, names, duplicates):
        planner.add(block, left_out)
    planner.finish()
    paths = [str((shard.folder / TOKENS_FILE).absolute()) for shard in shards]
    content = {"paths": paths, "tokens": [shard.num_tokens for shard in shards]}
    (folder / SHARDS_FILE).write_text(json.dumps(content), encoding="utf-8")
    return planner.plan


class _Planner:
    def __init__(self, names: list[str], selection: Selection, folder: Path) -> None:
        size, seed = len(names), selection.seed
        shape = (size, selection.num_buckets)
        self.plan = Plan(
            folder,
            names,
            seen=Tally.zeros(size),
            duplicates=Tally.zeros(size),
            held_out=Tally.zeros(size),
            repeated=Tally.zeros(size),
            thinned=Tally.zeros(size),
            documents_per_bucket=np.zeros(shape, dtype=np.int64),
            tokens_per_bucket=np.zeros(shape, dtype=np.int64),
            characters_per_bucket=np.zeros(selection.num_buckets, dtype=np.int64),
            straddling=np.zeros(size, dtype=np.int64),
        )
        self._selection = selection
        self._assigner = BucketAssigner(size, selection.num_buckets, seed)
        self._holdout = ShareTaker(np.full(size, selection.holdout), seed, _HOLDOUT_KEY)
        self._fractions = ShareTaker(selection.weights % 1, seed, _WEIGHT_KEY)
        self._pending: tuple[npt.NDArray[Any], npt.NDArray[np.int32]] | None = None
        for bucket in range(selection.num_buckets):
            self.plan.member_file(bucket).touch()
        (folder / HOLDOUT_FILE).touch()

    def add(self, block: npt.NDArray[Any], left_out: npt.NDArray[np.bool_]) -> None:
        """Plan a block; it is written when the next one comes, for the last one is levelled."""
        plan = self.plan
        plan.seen.add(block, np.ones(len(block), dtype=np.int64))
        plan.duplicates.add(block, left_out)
        block = block[~left_out]
        held_out = self._holdout.take(block["category"])
        plan.held_out.add(block, held_out)
        _append(plan.folder / HOLDOUT_FILE, block[held_out])
        block = block[~held_out]
        copies = copies_of(block["category"], self._selection.weights, self._fractions)
        plan.repeated.add(block, np.maximum(copies - 1, 0))
        plan.thinned.add(block, copies == 0)
        block = np.repeat(block, copies)
        self._write()
        self._pending = (block, self._assigner.assign(block["tokens"], block["category"]))

    def finish(self) -> None:
        """Level the last block and write it."""
        if self._pending is not None:
            block, buckets = self._pending
            totals, max_length = self._assigner.loads.sum(axis=0), self._selection.max_length
            if int(totals.min()) >= _ROWS_WORTH_LEVELLING * max_length:
                self._pending = (block, level_rows(block["tokens"], buckets, totals, max_length))
        self._write()

    def _write(self) -> None:
        if self._pending is None:
            return
        block, buckets = self._pending
        self._pending = None
        plan = self.plan
        shape = plan.tokens_per_bucket.shape
        cells = block["category"].astype(np.int64) * shape[1] + buckets
        plan.documents_per_bucket += np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
        plan.tokens_per_bucket += _summed(cells, block["tokens"], shape[0] * shape[1]).reshape(shape)
        plan.characters_per_bucket += _summed(buckets, block["characters"], len(plan.characters_per_bucket))
        plan.straddling += _summed(block["category"], block["straddles"], len(plan.straddling))
        order = np.argsort(buckets, kind="stable")
        bounds = np.searchsorted(buckets[order], np.arange(self._selection.num_buckets + 1))
        for bucket in np.unique(buckets).tolist():
            _append(plan.member_file(bucket), block[order[bounds[bucket] : bounds[bucket + 1]]])


_BLOCK: Final = np.dtype(
    [*((name, MEMBER[name]) for name in MEMBER.names or ()), ("characters", "<i8"), ("straddles", "?")]
)


def _blocks(
    shards: Sequence[EncodedShard], names: list[str], duplicates: Sequence[npt.NDArray[np.bool_]] | None
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]]:
    """Read the shards' tables, so many at a time that a block has about `BLOCK_DOCUMENTS` documents."""
    numbers = {name: number for number, name in enumerate(names)}
    tables: list[npt.NDArray[Any]] = []
    left_out: list[npt.NDArray[np.bool_]] = []
    first = 0
    for index, shard in enumerate(shards):
        table = _block_of(shard, first, numbers)
        tables.append(table)
        left_out.append(np.zeros(len(table), dtype=np.bool_) if duplicates is None else duplicates[index])
        first += shard.num_tokens
        if sum(map(len, tables)) >= BLOCK_DOCUMENTS:
            yield np.concatenate(tables), np.concatenate(left_out)
            tables, left_out = [], []
    if tables:
        yield np.concatenate(tables), np.concatenate(left_out)


def _block_of(shard: EncodedShard, first: int, numbers: dict[str, int]) -> npt.NDArray[Any]:
    documents = shard.documents()
    block = np.zeros(len(documents), dtype=_BLOCK)
    tokens = documents["tokens"].astype(np.int64)
    block["start"] = first + np.cumsum(tokens) - tokens
    for name in ("tokens", "unlearned", "characters", "straddles"):
        block[name] = documents[name]
    if len(documents):
        block["category"] = np.array([numbers[name] for name in shard.categories], dtype=np.int32)[
            documents["category"]
        ]
    return block


def _append(path: Path, block: npt.NDArray[Any]) -> None:
    members = np.empty(len(block), dtype=MEMBER)
    for name in MEMBER.names or ():
        members[name] = block[name]
    with path.open("ab") as file:
        file.write(members.tobytes())


def _summed(places: npt.NDArray[Any], values: npt.NDArray[Any], size: int) -> npt.NDArray[np.int64]:
    """Add up [D] values by their places: [size]. Whole numbers are exact in float64 up to 9e15."""
    return np.bincount(places, weights=values, minlength=size).astype(np.int64)
