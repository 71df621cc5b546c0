"""From encoded examples to parts: which example goes to which part, into which row, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.buckets import BucketAssigner
from colossal_llama2.dataset.conversation_chunks import EncodedChunk
from colossal_llama2.dataset.conversation_encoding import SetType
from colossal_llama2.dataset.conversation_rows import SET_COLUMNS, SetWriter
from colossal_llama2.dataset.order import seeded_permutation
from colossal_llama2.dataset.parts import IGNORED
from colossal_llama2.dataset.splicing import pack_best_fit

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Examples of encoded chunks, in input order or as they were chosen.

    Attributes:
        keys: [N] uint64, see `Example`.
        sources: [N] file number.
        tokens: [N] tokens.
        learned: [N] learned tokens.
        sequences: [N] how many sequences it is.
        chunks: [N] chunk number.
        numbers: [N] number inside the chunk.
        first_ids: [N] first token inside the chunk.
        first_sequences: [N] first sequence inside the chunk.
    """

    keys: npt.NDArray[np.uint64]
    sources: Ints
    tokens: Ints
    learned: Ints
    sequences: Ints
    chunks: Ints
    numbers: Ints
    first_ids: Ints
    first_sequences: Ints

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.keys)

    def choose(self, chosen: npt.NDArray[Any]) -> Examples:
        """Return the examples of these numbers, or for which this mask is true."""
        return Examples(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class PartJob:
    """What a worker needs to write a part.

    Attributes:
        part: its number.
        examples: its examples.
        encoded: all chunks.
        type: what the set is for.
        max_length: tokens a row can hold.
        packing: whether conversations share rows.
        seed: decides the order of rows.
        set_dir: the set's folder.
    """

    part: int
    examples: Examples
    encoded: Sequence[EncodedChunk]
    type: SetType
    max_length: int
    packing: bool
    seed: int
    set_dir: Path


@dataclass(frozen=True)
class WrittenPart:
    """What was counted in a part while it was written, from the rows themselves."""

    bucket: int
    rows: int
    examples: int
    sequences: int
    tokens: int
    learned_tokens: int
    pairs: int
    arrow_sha256: str


def gather(encoded: Sequence[EncodedChunk]) -> Examples:
    """Put the chunks' examples behind one another."""
    tables = [chunk.table("examples") for chunk in encoded]
    sizes = [len(table) for table in tables]

    def column(name: str) -> npt.NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype=np.int64), *(table[name] for table in tables)]).astype(np.int64)

    def starts(name: str) -> Ints:
        parts = [np.cumsum(table[name]) - table[name] for table in tables]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64)

    keys = np.concatenate([np.zeros(0, dtype=np.uint64), *(table["key"] for table in tables)])
    return Examples(
        keys=keys.astype(np.uint64),
        sources=np.repeat(np.array([chunk.source for chunk in encoded], dtype=np.int64), sizes),
        tokens=column("tokens"),
        learned=column("learned"),
        sequences=column("sequences"),
        chunks=np.repeat(np.arange(len(encoded), dtype=np.int64), sizes),
        numbers=np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(size) for size in sizes)]).astype(np.int64),
        first_ids=starts("tokens"),
        first_sequences=starts("sequences"),
    )


def divide(examples: Examples, num_parts: int, seed: int) -> list[Examples]:
    """Divide examples over parts, so that each part has its share of every source."""
    num_sources = int(examples.sources.max(initial=0)) + 1
    parts = BucketAssigner(num_sources, num_parts, seed).assign(examples.tokens, examples.sources)
    return [examples.choose(np.flatnonzero(parts == part)) for part in range(num_parts)]


def write_part(job: PartJob) -> WrittenPart:
    """Write one part and count it from its rows."""
    rows = _pack(job.examples.tokens, job.max_length) if job.type == "sft" and job.packing else None
    num_rows = len(job.examples) if rows is None else len(rows)
    reader = _Reader(job)
    written = sequences = tokens = learned = pairs = 0
    with SetWriter(job.set_dir, job.part, SET_COLUMNS[job.type]) as writer:
        for row in seeded_permutation(num_rows, job.seed, 1, job.part).tolist():
            members = [row] if rows is None else rows[row]
            written += len(members)
            if job.type == "prompt":
                ids, text, record = reader.prompt(members[0])
                writer.write(ids, text, record)
                sequences, tokens = sequences + 1, tokens + len(ids)
                continue
            ids, labels, seq_lens, ranks = reader.conversations(members)
            writer.write(ids, labels, seq_lens, *([ranks] if job.type == "preference" else []))
            sequences, tokens = sequences + len(seq_lens), tokens + len(ids)
            learned += int((labels != IGNORED).sum())
            pairs += int((ranks[:, None] < ranks[None, :]).sum()) if job.type == "preference" else 0
    return WrittenPart(job.part, num_rows, written, sequences, tokens, learned, pairs, writer.content_hash())


def _pack(lengths: Ints, max_length: int) -> list[list[int]]:
    """Pack conversations into rows; here alone the splicer's own form of rows is known."""
    rows = pack_best_fit(lengths, max_length)
    return [members.tolist() for members in np.split(rows.members, rows.offsets[1:-1])] if len(rows) else []


class _Reader:
    """Reads examples from the chunks' files, each mapped once."""

    def __init__(self, job: PartJob) -> None:
        self._job = job
        self._maps: dict[tuple[int, str], Any] = {}

    def conversations(
        self, members: Sequence[int]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return ids, labels, lengths of the sequences, and their ranks, of examples behind one another."""
        found = [self._example(member) for member in members]
        ids, learned, lengths, ranks = (np.concatenate(parts) for parts in zip(*found, strict=True))
        labels = np.where(learned, ids, np.int32(IGNORED)).astype(np.int32)
        return ids, labels, lengths.astype(np.int32), ranks.astype(np.int32)

    def prompt(self, member: int) -> tuple[npt.NDArray[np.int32], str, str]:
        """Return ids, text and record of a prompt."""
        texts = self._mapped(member, "texts")
        number = int(self._job.examples.numbers[member])
        return self._example(member)[0], texts["text"][number].as_py(), texts["record"][number].as_py()

    def _example(self, member: int) -> tuple[Any, Any, Any, Any]:
        examples = self._job.examples
        first, count = int(examples.first_ids[member]), int(examples.tokens[member])
        begin, several = int(examples.first_sequences[member]), int(examples.sequences[member])
        sequences = self._mapped(member, "sequences")[begin : begin + several]
        ids, learned = (self._mapped(member, name)[first : first + count] for name in ("ids", "learned"))
        return ids, learned, sequences["tokens"], sequences["rank"]

    def _mapped(self, member: int, name: str) -> Any:
        key = (int(self._job.examples.chunks[member]), name)
        if key not in self._maps:
            chunk = self._job.encoded[key[0]]
            if name == "texts":
                self._maps[key] = chunk.texts()
            elif name == "sequences":
                self._maps[key] = chunk.table(name)
            else:
                self._maps[key] = chunk.mapped(name, "<i4" if name == "ids" else "?")
        return self._maps[key]
