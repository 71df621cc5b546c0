"""From the documents' lengths alone to a plan: which document goes to which bucket, cut where, in which row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.buckets import assign_buckets
from colossal_llama2.dataset.encoding import EncodedShard
from colossal_llama2.dataset.order import seeded_permutation
from colossal_llama2.dataset.parts import IGNORED, Row
from colossal_llama2.dataset.splicing import Pieces, cut_documents, pack_best_fit


@dataclass(frozen=True)
class Corpus:
    """All documents of all shards, in input order.

    Attributes:
        shards: where the tokens lie.
        shard_of: [D] shard number.
        offsets: [D] first token inside the shard.
        tokens: [D] tokens.
        unlearned: [D] leading tokens that are not learned: bos and source.
        characters: [D] characters of its text.
        straddles: [D] whether a token lies across source and target.
        categories: [D] number in `category_names`.
        category_names: sorted.
    """

    shards: Sequence[EncodedShard]
    shard_of: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    unlearned: npt.NDArray[np.int64]
    characters: npt.NDArray[np.int64]
    straddles: npt.NDArray[np.bool_]
    categories: npt.NDArray[np.int64]
    category_names: list[str]


@dataclass(frozen=True)
class BucketJob:
    """What a worker needs to write one bucket.

    Attributes:
        bucket: its number.
        shards: every shard of the corpus.
        shard_of: [D] of the bucket's documents.
        offsets: [D] first token inside the shard.
        tokens: [D] tokens.
        unlearned: [D] leading tokens that are not learned.
        max_length: tokens a row can hold.
        seed: decides the rows' order.
    """

    bucket: int
    shards: Sequence[EncodedShard]
    shard_of: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    unlearned: npt.NDArray[np.int64]
    max_length: int
    seed: int


def gather(shards: Sequence[EncodedShard]) -> Corpus:
    """Put the shards' document tables behind one another."""
    tables = [shard.documents() for shard in shards]
    names = sorted({name for shard in shards for name in shard.categories})
    numbers = {name: number for number, name in enumerate(names)}
    empty = np.zeros(0, dtype=np.int64)
    categories = [
        np.array([numbers[name] for name in shard.categories], dtype=np.int64)[table["category"]]
        for shard, table in zip(shards, tables, strict=True)
        if len(table)
    ]
    return Corpus(
        shards=shards,
        shard_of=np.repeat(np.arange(len(shards)), [len(table) for table in tables]),
        offsets=np.concatenate([np.cumsum(table["tokens"]) - table["tokens"] for table in tables] or [empty]),
        tokens=np.concatenate([table["tokens"] for table in tables] or [empty]),
        unlearned=np.concatenate([table["unlearned"] for table in tables] or [empty]),
        characters=np.concatenate([table["characters"] for table in tables] or [empty]),
        straddles=np.concatenate([table["straddles"] for table in tables] or [empty.astype(np.bool_)]),
        categories=np.concatenate(categories or [empty]),
        category_names=names,
    )


def plan_buckets(
    corpus: Corpus, num_buckets: int, max_length: int, seed: int
) -> tuple[list[BucketJob], npt.NDArray[Any]]:
    """Divide the corpus into bucket jobs; also return [D] the bucket of each document."""
    buckets = assign_buckets(corpus.tokens, corpus.categories, num_buckets, seed)
    order = np.argsort(buckets, kind="stable")
    bounds = np.searchsorted(buckets[order], np.arange(num_buckets + 1))
    jobs = []
    for bucket in range(num_buckets):
        members = order[bounds[bucket] : bounds[bucket + 1]]
        jobs.append(
            BucketJob(
                bucket,
                corpus.shards,
                corpus.shard_of[members],
                corpus.offsets[members],
                corpus.tokens[members],
                corpus.unlearned[members],
                max_length,
                seed,
            )
        )
    return jobs, buckets


def build_rows(job: BucketJob) -> Iterator[Row]:
    """Yield a bucket's rows: documents cut and packed, rows shuffled from the seed."""
    pieces = cut_documents(job.tokens, job.max_length)
    rows = pack_best_fit(pieces.lengths, job.max_length)
    maps: dict[int, npt.NDArray[np.int32]] = {}
    for index in seeded_permutation(len(rows), job.seed, 1, job.bucket).tolist():
        yield _build_row(job, pieces, rows[index], maps)


def _build_row(job: BucketJob, pieces: Pieces, members: list[int], maps: dict[int, npt.NDArray[np.int32]]) -> Row:
    seq_lens = pieces.lengths[members].astype(np.int32)
    input_ids = np.empty(int(seq_lens.sum()), dtype=np.int32)
    unlearned = []
    begin = 0
    for piece, length in zip(members, seq_lens.tolist(), strict=True):
        document, start = int(pieces.documents[piece]), int(pieces.starts[piece])
        shard = int(job.shard_of[document])
        if shard not in maps:
            maps[shard] = job.shards[shard].tokens()
        first = int(job.offsets[document]) + start
        input_ids[begin : begin + length] = maps[shard][first : first + length]
        # The first token of a piece has nothing before it in its row to be predicted from.
        unlearned.append((begin, begin + max(1, int(job.unlearned[document]) - start)))
        begin += length
    labels = input_ids.copy()
    for (first, last), length in zip(unlearned, seq_lens.tolist(), strict=True):
        labels[first : min(last, first + length)] = IGNORED
    return Row(input_ids, labels, seq_lens)
