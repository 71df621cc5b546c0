"""Shards of input to shards of tokens: each document as bos, text, eos, behind one another in one int32 file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.batching import BATCH_CHARACTERS
from colossal_llama2.dataset.deduplication import Deduplicate, hash_version, text_hashes
from colossal_llama2.dataset.encoded import DOCUMENT, EncodedShard, RefusedLine, ShardWriter, read_shard_folder
from colossal_llama2.dataset.inputs import Segment, Shard, first_line_number
from colossal_llama2.dataset.long_documents import encode_giant
from colossal_llama2.dataset.reading import GiantRecord, Reading, RecordBatch, Refusal, read_segment, records_key
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import whole_directory
from colossal_llama2.tokenizer.cuts import StretchEncoder
from colossal_llama2.tokenizer.folder import read_folder
from colossal_llama2.tokenizer.loading import Encoder, EncoderKind, load_encoder
from colossal_llama2.tokenizer.seams import byte_sizes

LAYOUT: Final = 4


@dataclass(frozen=True)
class EncodingJob:
    """What a worker needs to encode shards.

    Attributes:
        tokenizer_dir: the tokenizer.
        tokenizer_key: see the function of that name.
        cache_dir: where encoded shards are kept.
        reading: what is a record.
        deduplicate: what duplicates are told by.
        encoder_kind: which encoder does the work; all give the same tokens, so no cache is keyed by it.
        proof: see `load_encoder`.
    """

    tokenizer_dir: Path
    tokenizer_key: str
    cache_dir: Path
    reading: Reading
    deduplicate: Deduplicate = "none"
    encoder_kind: EncoderKind = "reference"
    proof: str | None = None


def tokenizer_key(tokenizer_dir: Path, encoder: Encoder) -> str:
    """Spell out what decides a document's tokens.

    The fingerprint is that of the vocabulary; which tokens stand around a document, and which pieces never come out of
    a text because they are markers, is said by the folder's settings.
    """
    markers = sorted(read_folder(tokenizer_dir).markers)
    return json.dumps([encoder.fingerprint, encoder.bos_token_id, encoder.eos_token_id, markers])


_shared: dict[tuple[Any, ...], Encoder] = {}  # of this process; a forked one has its parent's


def share_encoder(job: EncodingJob, encoder: Encoder) -> None:
    """Let this process, and those that are forked from it, encode with an encoder that is loaded already."""
    encoder.encode_with_seam(["ab"], [1])  # it may import and count more when it is first used
    _shared.clear()
    _shared[_identity(job)] = encoder


def encode_shard(shard: Shard, job: EncodingJob) -> EncodedShard:
    """Encode one shard, or find it encoded already.

    The cache is keyed by what decides the tokens: the bytes, the tokenizer, what a record is, and the layout; not by a
    place. A damaged entry is encoded again.

    Raises:
        InputError: a line is not a record, and bad records are not to be skipped.
    """
    digest = hashlib.sha256("\n".join(records_key(part, job.reading) for part in shard.segments).encode()).hexdigest()
    deciding = [LAYOUT, job.tokenizer_key, digest, hash_version(job.deduplicate)]
    folder = job.cache_dir / f"tokens-{hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:32]}"
    found = read_shard_folder(folder, digest)
    if found is not None:
        return found
    try:
        # Not forced to the disk: after a power cut the checksums tell what is missing, and it is encoded again.
        with whole_directory(folder, overwrite=True, flushed=False) as work:
            encoded = _encode_into(work, shard, digest, job)
    except OSError:
        # Another process may have encoded the same bytes and put its entry there first.
        found = read_shard_folder(folder, digest)
        if found is None:
            raise
        return found
    return replace(encoded, folder=folder)


def _encode_into(work: Path, shard: Shard, digest: str, job: EncodingJob) -> EncodedShard:
    refused: list[RefusedLine] = []
    with ShardWriter(work, digest) as writer:
        encoding = _Encoding(writer, job)
        for number, segment in enumerate(shard.segments):
            refusals: list[Refusal] = []
            for entry in read_segment(segment, job.reading, refusals):
                encoding.add(entry)
            writer.end_segment(encoding.num_documents)
            refused += _relative(number, segment, refusals)
        encoding.finish()
        return writer.finish(refused)


class _Encoding:
    """Encodes what the segments of a shard give; of small files, the documents of many together.

    Attributes:
        num_documents: how many were given so far.
    """

    def __init__(self, writer: ShardWriter, job: EncodingJob) -> None:
        self.num_documents = 0
        self._writer, self._job, self._encoder = writer, job, _encoder(job)
        self._waiting = RecordBatch()
        self._held = 0

    def add(self, entry: RecordBatch | GiantRecord) -> None:
        """Take documents, in order."""
        if isinstance(entry, GiantRecord):
            self.finish()
            encode_giant(self._writer, entry, self._encoder, _stretches(self._job), self._job.deduplicate)
            self.num_documents += 1
            return
        characters = sum(map(len, entry.texts))
        if self._held + characters > BATCH_CHARACTERS:
            self.finish()
        self._waiting.extend(entry)
        self._held += characters
        self.num_documents += len(entry.texts)

    def finish(self) -> None:
        """Encode what still waits."""
        _add_batch(self._writer, self._waiting, self._encoder, self._job.deduplicate)
        self._waiting, self._held = RecordBatch(), 0


def _add_batch(writer: ShardWriter, batch: RecordBatch, encoder: Encoder, deduplicate: Deduplicate) -> None:
    """Encode source and target together, as one text, and put bos and eos around it.

    Encoded apart, a merge across the seam would be lost and the target would get a space of its own. A token that lies
    on both sides of the seam belongs to the target, which is learned whole.
    """
    if not batch.texts:
        return
    encoded, source_tokens, straddles = encoder.encode_with_seam(batch.texts, batch.source_characters)
    bos = [encoder.bos_token_id] if encoder.bos_token_id is not None else []
    eos = [encoder.eos_token_id] if encoder.eos_token_id is not None else []
    lengths = np.diff(encoded.offsets)
    wide = lengths + len(bos) + len(eos)
    table = np.zeros(len(batch.texts), dtype=DOCUMENT)
    table["tokens"] = wide
    table["unlearned"] = source_tokens.astype(np.int64) + len(bos)
    table["straddles"] = straddles
    numbers = {category: writer.number_of(category) for category in dict.fromkeys(batch.categories)}
    table["category"] = [numbers[category] for category in batch.categories]
    table["characters"] = list(map(len, batch.texts))
    table["bytes"] = byte_sizes(batch.texts) if encoded.sizes is None else encoded.sizes
    writer.add_tokens(_surrounded(encoded.ids, lengths, wide, bos, eos))
    writer.add_documents(table, None if deduplicate == "none" else text_hashes(batch.texts, deduplicate))


def _surrounded(
    ids: npt.NDArray[np.int32], lengths: npt.NDArray[Any], wide: npt.NDArray[Any], bos: list[int], eos: list[int]
) -> npt.NDArray[np.int32]:
    """Put bos and eos around every text; `lengths` are without them and `wide` with them."""
    ends = np.cumsum(wide)
    tokens = np.empty(int(ends[-1]), dtype=np.int32)
    is_text = np.ones(len(tokens), dtype=np.bool_)
    if bos:
        tokens[ends - wide] = bos[0]
        is_text[ends - wide] = False
    if eos:
        tokens[ends - 1] = eos[0]
        is_text[ends - 1] = False
    tokens[is_text] = ids
    return tokens


def _relative(number: int, segment: Segment, refusals: Sequence[Refusal]) -> list[RefusedLine]:
    """Number refused lines from the segment's begin: the cache cannot know how many lines stand before it."""
    if not refusals:
        return []
    first = first_line_number(segment)
    return [RefusedLine(number, refusal.line - first, refusal.reason) for refusal in refusals]


def _encoder(job: EncodingJob) -> Encoder:
    """Return the process's encoder, loading it for the first shard if it was not shared.

    Raises:
        InputError: the folder has changed since the command began.
    """
    asked_for = _identity(job)
    if asked_for in _shared:
        return _shared[asked_for]
    encoder = load_encoder(job.tokenizer_dir, kind=job.encoder_kind, proof=job.proof)
    if tokenizer_key(job.tokenizer_dir, encoder) != job.tokenizer_key:
        raise InputError("was changed while the corpus was being encoded", path=job.tokenizer_dir, remedy="start again")
    share_encoder(job, encoder)
    return encoder


def _identity(job: EncodingJob) -> tuple[Any, ...]:
    return job.tokenizer_dir, job.tokenizer_key, job.encoder_kind, job.proof


def _stretches(job: EncodingJob) -> StretchEncoder:
    """Make the encoder of long texts; there are few of them."""
    return StretchEncoder(job.tokenizer_dir, _encoder(job))
