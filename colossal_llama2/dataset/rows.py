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
from colossal_llama2.dataset.splicing import Cutting, Splice, splice

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
    bucket = _Bucket(job)
    tokens = learned = empty = 0
    with PartWriter(job.arrow_dir, job.jsonl_dir, job.part) as writer:
        for batch in bucket.batches():
            writer.write_batch(batch)
            per_row = np.add.reduceat(batch.labels != IGNORED, batch.offsets[:-1], dtype=np.int64)
            tokens += len(batch.input_ids)
            learned += int(per_row.sum())
            empty += int((per_row == 0).sum())
    pieces = len(bucket.pieces.documents)
    written = WrittenBucket(job.part, len(bucket.rows), tokens, learned, pieces, empty, writer.content_hash())
    return written, bucket.count_cuts()


class _Bucket:
    """The documents of a bucket, cut and spliced."""

    def __init__(self, job: BucketJob) -> None:
        self._job = job
        self._members = np.fromfile(job.member_file, dtype=MEMBER)
        self.pieces, self.rows = splice(self._members["tokens"], job.how, job.cutting)
        # Tokens at a piece's beginning that belong to bos and source, and those that are not learned: the first token
        # of a row or document has nothing before it to be predicted from, unless a bos was added there.
        seen = self._members["unlearned"][self.pieces.documents].astype(np.int64) - self.pieces.starts
        self._seen = np.clip(seen, 0, self.pieces.lengths)
        self._unlearned = np.clip(seen, 1 - self.pieces.added, self.pieces.lengths) + self.pieces.added

    def count_cuts(self) -> CutCounts:
        """Count from the lengths alone what is cut and what is not learned."""
        pieces, members = self.pieces, self._members
        category = members["category"][pieces.documents]
        continued = pieces.starts > 0
        times = np.bincount(pieces.documents, minlength=len(members))
        too_long = members["tokens"][pieces.documents] > self._job.cutting.max_length

        def by_category(of: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
            return np.bincount(of, weights=values, minlength=self._job.num_categories).astype(np.int64)

        return CutCounts(
            documents_cut=by_category(members["category"], times > 1),
            continuations=by_category(category, continued),
            longer_than_row=by_category(category, continued & too_long),
            source=by_category(category, np.maximum(self._seen - ~continued, 0)),
            first_of_continuation=by_category(category, continued & (self._seen == 0) & (pieces.added == 0)),
            added_bos=by_category(category, pieces.added),
            unlearned=by_category(category, self._unlearned),
        )

    def batches(self) -> Iterator[RowBatch]:
        """Yield the rows in their seeded order, some hundred at a time."""
        job, rows = self._job, self.rows
        order = seeded_permutation(len(rows), job.seed, 1, job.bucket)
        at_once = max(1, min(_ROWS_AT_ONCE, _TOKENS_AT_ONCE // job.cutting.max_length))
        for begin in range(0, len(order), at_once):
            chosen = order[begin : begin + at_once]
            counts = np.diff(rows.offsets)[chosen]
            yield self._assemble(rows.members[_ranges(rows.offsets[chosen], counts)], counts)

    def _assemble(self, parts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> RowBatch:
        """Read the tokens of the pieces `parts`, `counts[i]` of them for row i."""
        widths, added = self.pieces.widths[parts], self.pieces.added[parts]
        begins = np.cumsum(widths) - widths
        input_ids = np.empty(int(widths.sum()), dtype=np.int32)
        starts = self._members["start"][self.pieces.documents[parts]] + self.pieces.starts[parts]
        source = _tokens_of(self._job.member_file.parent)
        source.read_into(input_ids, begins + added, starts, self.pieces.lengths[parts])
        if self._job.bos_token_id is not None:
            input_ids[begins[added > 0]] = self._job.bos_token_id
        labels = input_ids.copy()
        labels[_ranges(begins, self._unlearned[parts])] = IGNORED
        piece_offsets = np.concatenate([[0], np.cumsum(counts)])
        offsets = np.append(begins, len(input_ids))[piece_offsets]
        return RowBatch(input_ids, labels, widths.astype(np.int32), offsets, piece_offsets)


def _ranges(begins: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the numbers of all ranges behind one another: [3, 9] and [2, 1] give [3, 4, 9]."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(begins - ends + lengths, lengths)


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
