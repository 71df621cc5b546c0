"""One bucket: its documents cut and spliced into rows, the rows in a seeded order, read from the shards and written."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.order import seeded_permutation
from colossal_llama2.dataset.parts import IGNORED, PartWriter, RowBatch
from colossal_llama2.dataset.planning import MEMBER, SHARDS_FILE
from colossal_llama2.dataset.splicing import Cutting, Pieces, Rows, Splice, splice

_ROWS_AT_ONCE: Final = 256
_TOKENS_AT_ONCE: Final = 1 << 20
_OPEN_FILES: Final = 128


@dataclass(frozen=True)
class BucketJob:
    """What a worker needs to write one bucket.

    Attributes:
        bucket: its number, which is also the seed's.
        part: number of the folder it goes to.
        member_file: its documents, a file of `MEMBER`.
        arrow_dir: parent of the Arrow folder.
        jsonl_dir: parent of the jsonl file, if any.
        num_categories: categories of the corpus.
        how: how rows are made of documents.
        cutting: how long rows are and how documents may be cut.
        bos_token_id: what stands before a continuation, where something does.
        seed: decides the rows' order.
    """

    bucket: int
    part: int
    member_file: Path
    arrow_dir: Path
    jsonl_dir: Path | None
    num_categories: int
    how: Splice
    cutting: Cutting
    bos_token_id: int | None
    seed: int


@dataclass(frozen=True)
class CutCounts:
    """What was cut and is not learned, planned from the lengths alone; [C] int64 each.

    Attributes:
        documents_cut: documents that lie in more than one row.
        continuations: pieces that continue a document.
        longer_than_row: those of them that no row could have held.
        source: tokens of sources, the first of each document not among them.
        first_of_continuation: first tokens of continuations, which nothing in their row predicts.
        added_bos: tokens that were added before continuations.
        unlearned: all of these and the first tokens of documents.
    """

    documents_cut: npt.NDArray[np.int64]
    continuations: npt.NDArray[np.int64]
    longer_than_row: npt.NDArray[np.int64]
    source: npt.NDArray[np.int64]
    first_of_continuation: npt.NDArray[np.int64]
    added_bos: npt.NDArray[np.int64]
    unlearned: npt.NDArray[np.int64]

    @staticmethod
    def sum_of(counts: list[CutCounts], num_categories: int) -> CutCounts:
        """Add up those of several buckets."""
        zeros = np.zeros(num_categories, dtype=np.int64)
        return CutCounts(*(sum((getattr(c, f.name) for c in counts), zeros) for f in fields(CutCounts)))


@dataclass(frozen=True)
class WrittenBucket:
    """What was counted in a bucket while it was written, from the rows themselves; `pieces` are of documents."""

    bucket: int
    rows: int
    tokens: int
    learned_tokens: int
    pieces: int
    rows_without_learned_tokens: int
    arrow_sha256: str


def write_bucket(job: BucketJob) -> tuple[WrittenBucket, CutCounts]:
    """Splice one bucket and write it; what was planned and what was written are counted apart."""
    members = np.fromfile(job.member_file, dtype=MEMBER)
    pieces, rows = splice(members["tokens"], job.how, job.cutting)
    tokens = learned = empty = 0
    with PartWriter(job.arrow_dir, job.jsonl_dir, job.part) as writer:
        for batch in _batches(job, members, pieces, rows):
            writer.write_batch(batch)
            is_learned = batch.labels != IGNORED
            per_row = np.add.reduceat(is_learned, batch.offsets[:-1], dtype=np.int64)
            tokens += len(batch.input_ids)
            learned += int(per_row.sum())
            empty += int((per_row == 0).sum())
    written = WrittenBucket(
        job.part, len(rows), tokens, learned, len(pieces.documents), empty, writer.content_hash()
    )
    return written, _count_cuts(job, members, pieces)


def _unlearned(members: npt.NDArray[Any], pieces: Pieces) -> npt.NDArray[np.int64]:
    """Return [P] how many tokens at the beginning of each piece are not learned, an added bos not among them.

    The first token of a row or document has nothing before it to be predicted from, unless a bos was added there.
    """
    own = members["unlearned"][pieces.documents].astype(np.int64) - pieces.starts
    return np.clip(own, 1 - pieces.added, pieces.lengths)


def _count_cuts(job: BucketJob, members: npt.NDArray[Any], pieces: Pieces) -> CutCounts:
    category = members["category"][pieces.documents]
    tokens = members["tokens"]
    continued = pieces.starts > 0
    unlearned = _unlearned(members, pieces)
    own = np.clip(members["unlearned"][pieces.documents].astype(np.int64) - pieces.starts, 0, pieces.lengths)
    times = np.bincount(pieces.documents, minlength=len(members))

    def by_category(of: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        return np.bincount(of, weights=values, minlength=job.num_categories).astype(np.int64)

    return CutCounts(
        documents_cut=by_category(members["category"], times > 1),
        continuations=by_category(category, continued),
        longer_than_row=by_category(category, continued & (tokens[pieces.documents] > job.cutting.max_length)),
        source=by_category(category, np.maximum(own - ~continued, 0)),
        first_of_continuation=by_category(category, continued & (own == 0) & (pieces.added == 0)),
        added_bos=by_category(category, pieces.added),
        unlearned=by_category(category, unlearned + pieces.added),
    )


def _batches(job: BucketJob, members: npt.NDArray[Any], pieces: Pieces, rows: Rows) -> Iterator[RowBatch]:
    order = seeded_permutation(len(rows), job.seed, 1, job.bucket)
    source = _tokens_of(job.member_file.parent)
    unlearned = _unlearned(members, pieces)
    at_once = max(1, min(_ROWS_AT_ONCE, _TOKENS_AT_ONCE // job.cutting.max_length))
    for begin in range(0, len(order), at_once):
        chosen = order[begin : begin + at_once]
        counts = np.diff(rows.offsets)[chosen]
        inside = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        parts = rows.members[np.repeat(rows.offsets[chosen], counts) + inside]
        yield _assemble(job, members, pieces, unlearned, parts, counts, source)


def _assemble(
    job: BucketJob,
    members: npt.NDArray[Any],
    pieces: Pieces,
    unlearned: npt.NDArray[np.int64],
    parts: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    source: TokenFiles,
) -> RowBatch:
    widths, added = pieces.widths[parts], pieces.added[parts]
    begins = np.cumsum(widths) - widths
    input_ids = np.empty(int(widths.sum()), dtype=np.int32)
    places = begins + added
    starts = members["start"][pieces.documents[parts]] + pieces.starts[parts]
    source.read_into(input_ids, places, starts, pieces.lengths[parts])
    if job.bos_token_id is not None:
        input_ids[begins[added > 0]] = job.bos_token_id
    labels = input_ids.copy()
    labels[begins] = IGNORED
    ignored = unlearned[parts] + added
    several = np.flatnonzero(ignored > 1)
    if len(several):
        lengths = ignored[several]
        inside = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        labels[np.repeat(begins[several], lengths) + inside] = IGNORED
    piece_offsets = np.concatenate([[0], np.cumsum(counts)])
    offsets = np.append(begins, len(input_ids))[piece_offsets]
    return RowBatch(input_ids, labels, widths.astype(np.int32), offsets, piece_offsets)


class TokenFiles:
    """Reads tokens of all shards by their number, without mapping files: what was read is the kernel's to forget.

    Args:
        paths: files of flat int32.
        tokens: how many each holds.
    """

    def __init__(self, paths: list[str], tokens: list[int]) -> None:
        self._paths = paths
        self._firsts = np.concatenate([[0], np.cumsum(np.array(tokens, dtype=np.int64))])
        self._open: OrderedDict[int, int] = OrderedDict()

    def read_into(
        self,
        target: npt.NDArray[np.int32],
        places: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
    ) -> None:
        """Read stretches of tokens, each inside one file, to places of `target`.

        Args:
            target: [T] int32.
            places: [N] where each stretch begins in `target`.
            starts: [N] its first token, counted through all files.
            lengths: [N] its tokens.
        """
        order = np.argsort(starts, kind="stable")  # forwards through the files
        files = np.searchsorted(self._firsts, starts[order], side="right") - 1
        offsets = (starts[order] - self._firsts[files]) * 4
        memory = target.view(np.uint8).data
        begins, sizes = places[order] * 4, lengths[order] * 4
        stretches = zip(files.tolist(), offsets.tolist(), begins.tolist(), sizes.tolist(), strict=True)
        for file, offset, begin, size in stretches:
            read = os.preadv(self._descriptor(file), [memory[begin : begin + size]], offset)
            while read < size:
                more = os.preadv(self._descriptor(file), [memory[begin + read : begin + size]], offset + read)
                if not more:
                    raise EOFError(f"{self._paths[file]} is shorter than it was")
                read += more

    def _descriptor(self, file: int) -> int:
        if file in self._open:
            return self._open[file]
        if len(self._open) >= _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        self._open[file] = os.open(self._paths[file], os.O_RDONLY)
        return self._open[file]


@lru_cache(maxsize=1)
def _tokens_of(plan_folder: Path) -> TokenFiles:
    content = json.loads((plan_folder / SHARDS_FILE).read_text(encoding="utf-8"))
    return TokenFiles(content["paths"], content["tokens"])
