"""Documents too large to hold: read, encoded and written in stretches, with the tokens of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from colossal_llama2.dataset.deduplication import Deduplicate, hash_of_chunks
from colossal_llama2.dataset.encoded import DOCUMENT, ShardWriter
from colossal_llama2.tokenizer.cuts import StretchEncoder
from colossal_llama2.tokenizer.encoder import Encoder

STRETCH: Final = 1 << 20
"""Characters that are encoded at a time, where the text can be cut so."""


class Giant(Protocol):
    """A record whose text comes in chunks."""

    @property
    def category(self) -> str:
        """Its category."""

    def source_chunks(self) -> Iterator[str]:
        """Yield the source from its beginning to its end."""

    def target_chunks(self) -> Iterator[str]:
        """Yield the target from its beginning to its end."""


@dataclass
class _Counts:
    tokens: int = 0
    unlearned: int = 0
    characters: int = 0
    num_bytes: int = 0
    straddles: bool = False


def encode_giant(
    writer: ShardWriter, record: Giant, encoder: Encoder, stretches: StretchEncoder, deduplicate: Deduplicate
) -> None:
    """Add one record to a shard, a stretch at a time.

    Args:
        writer: gets tokens and the document.
        record: the record.
        encoder: the tokenizer, for the tokens around the document.
        stretches: the same, for its text.
        deduplicate: what duplicates are told by.
    """
    counts = _Counts()
    if encoder.bos_token_id is not None:
        writer.add_tokens(np.array([encoder.bos_token_id], dtype=np.int32))
        counts.tokens = counts.unlearned = 1
    for text, split in _stretches(record, stretches):
        is_first = counts.characters == 0
        ids, before_split, straddles = stretches.encode(text, is_first, split)
        writer.add_tokens(ids)
        counts.tokens += len(ids)
        counts.unlearned += before_split
        counts.characters += len(text)
        counts.num_bytes += len(text.encode())
        counts.straddles |= straddles
    if encoder.eos_token_id is not None:
        writer.add_tokens(np.array([encoder.eos_token_id], dtype=np.int32))
        counts.tokens += 1
    table = np.zeros(1, dtype=DOCUMENT)
    row = (
        counts.tokens,
        counts.unlearned,
        writer.number_of(record.category),
        counts.characters,
        counts.num_bytes,
        counts.straddles,
    )
    table[0] = row
    hashes = None if deduplicate == "none" else hash_of_chunks(_text(record), deduplicate)
    writer.add_documents(table, hashes)


def _text(record: Giant) -> Iterator[str]:
    yield from record.source_chunks()
    yield from record.target_chunks()


def _stretches(record: Giant, stretches: StretchEncoder) -> Iterator[tuple[str, int]]:
    """Cut the text of source and target; yield each stretch with the characters of it that belong to the source."""
    pending, source_left, wanted = "", 0, 2 * STRETCH
    for chunk, is_source in _chunks(record):
        pending += chunk
        source_left += len(chunk) if is_source else 0
        while len(pending) >= wanted:
            cut = stretches.find_cut(pending, keep=len(pending) // 4)
            if cut is None:
                wanted = 2 * len(pending)  # nowhere to cut: the next place is looked for in twice as much
                break
            yield pending[:cut], min(source_left, cut)
            pending, source_left, wanted = pending[cut:], max(0, source_left - cut), 2 * STRETCH
    if pending:
        yield pending, source_left


def _chunks(record: Giant) -> Iterator[tuple[str, bool]]:
    for chunk in record.source_chunks():
        yield chunk, True
    for chunk in record.target_chunks():
        yield chunk, False
