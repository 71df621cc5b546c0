"""Shards of jsonl to shards of tokens: each document as bos, text, eos, behind one another in one int32 array."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from colossal_llama2.dataset.inputs import Shard, first_line_number
from colossal_llama2.dataset.reading import GiantRecord, Reading, RecordBatch, Refusal, read_segment, records_key
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import whole_directory
from colossal_llama2.tokenizer.folder import read_folder
from colossal_llama2.tokenizer.loading import Encoder, load_encoder

LAYOUT = 4
# Per document: segment of the shard, tokens in all (bos and eos among them), how many at its beginning are not learned
# (bos, source), category (index into the shard's list), characters and UTF-8 bytes of its text, and whether a token
# lies across source and target.
DOCUMENT = np.dtype(
    [
        ("segment", "<i4"),
        ("tokens", "<i8"),
        ("unlearned", "<i8"),
        ("category", "<i4"),
        ("characters", "<i8"),
        ("bytes", "<i8"),
        ("straddles", "?"),
    ]
)


@dataclass(frozen=True)
class EncodingJob:
    """What a worker needs to encode shards; `tokenizer_key` is that of the folder, see there."""

    tokenizer_dir: Path
    tokenizer_key: str
    cache_dir: Path
    reading: Reading


@dataclass(frozen=True)
class EncodedShard:
    """Where a shard's tokens lie, and what must be known to plan with them.

    Attributes:
        folder: holds ``tokens.npy`` (int32, flat) and ``documents.npy`` (`DOCUMENT`).
        categories: names for the documents' category numbers.
        refusals: lines passed over.
        content_hash: sha256 of the bytes that were read.
    """

    folder: Path
    categories: list[str]
    refusals: list[Refusal]
    content_hash: str

    def documents(self) -> npt.NDArray[Any]:
        """Read the documents' table (`DOCUMENT`)."""
        return np.load(self.folder / "documents.npy")

    def tokens(self) -> npt.NDArray[np.int32]:
        """Map the flat tokens.

        `np.load` would keep a file open for each map, and a large corpus has more shards than a process may open files.
        """
        path = self.folder / "tokens.npy"
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            header = file.tell()
        with pa.memory_map(str(path)) as mapped:
            return np.frombuffer(mapped.read_buffer(), dtype="<i4", offset=header)


def tokenizer_key(tokenizer_dir: Path, encoder: Encoder) -> str:
    """Spell out what decides a document's tokens.

    The fingerprint is that of the vocabulary; which tokens stand around a document, and which pieces never come out of
    a text because they are markers, is said by the folder's settings.
    """
    markers = sorted(read_folder(tokenizer_dir).markers)
    return json.dumps([encoder.fingerprint, encoder.bos_token_id, encoder.eos_token_id, markers])


def count_records(shard: Shard, reading: Reading) -> int:
    """Count a shard's records; done for all shards before the first is encoded, so that a mistake costs no time.

    Raises:
        InputError: a line is not a record, and bad records are not to be skipped.
    """
    return sum(len(batch.texts) for batch, _ in _read(shard, reading, []))


def encode_shard(shard: Shard, job: EncodingJob) -> EncodedShard:
    """Encode one shard, or find it encoded already.

    The cache is keyed by what decides the tokens: the bytes, the tokenizer, the mode and the layout; not by a place. A
    damaged entry is encoded again.

    Raises:
        InputError: a line is not a record, and bad records are not to be skipped.
    """
    digest = hashlib.sha256("\n".join(records_key(s, job.reading) for s in shard.segments).encode()).hexdigest()
    deciding = [LAYOUT, job.tokenizer_key, digest]
    folder = job.cache_dir / f"tokens-{hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:32]}"
    found = _read_cached(folder, digest, shard)
    if found is not None:
        return found
    refused: list[tuple[int, int, str]] = []
    batches = list(_read(shard, job.reading, refused))
    tokens, documents, categories = _encode(shard, batches, _encoder(job.tokenizer_dir, job.tokenizer_key))
    content = {"content_hash": digest, "categories": categories, "refused": refused}
    try:
        with whole_directory(folder, overwrite=True) as work:
            np.save(work / "tokens.npy", tokens)
            np.save(work / "documents.npy", documents)
            sums = _checksums(tokens, documents, content)
            (work / "shard.json").write_text(json.dumps({**content, "crc32": sums}), encoding="utf-8")
    except OSError:
        # Another process may have encoded the same bytes and put its entry there first.
        found = _read_cached(folder, digest, shard)
        if found is None:
            raise
        return found
    return EncodedShard(folder, categories, _refusals(shard, refused), digest)


def _read(shard: Shard, reading: Reading, refused: list[tuple[int, int, str]]) -> Iterator[tuple[RecordBatch, int]]:
    """Yield batches with their segment's number; lines refused are added as (segment, lines of it before, reason)."""
    for number, segment in enumerate(shard.segments):
        refusals: list[Refusal] = []
        for batch in read_segment(segment, reading, refusals):
            yield (_as_batch(batch) if isinstance(batch, GiantRecord) else batch), number
        first = first_line_number(segment) if refusals else 0
        refused += [(number, refusal.line - first, refusal.reason) for refusal in refusals]


def _as_batch(giant: GiantRecord) -> RecordBatch:
    source = "".join(giant.source_chunks())
    return RecordBatch([source + "".join(giant.target_chunks())], [len(source)], [giant.category])


def _refusals(shard: Shard, refused: Sequence[tuple[int, int, str]]) -> list[Refusal]:
    """Number refused lines through their files; the cache cannot know how many lines stand before a segment."""
    first = {number: first_line_number(shard.segments[number]) for number in {number for number, _, _ in refused}}
    return [
        Refusal(shard.segments[number].file.name, first[number] + before, reason) for number, before, reason in refused
    ]


def _encode(
    shard: Shard, batches: Sequence[tuple[RecordBatch, int]], encoder: Encoder
) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any], list[str]]:
    categories = sorted({category for batch, _ in batches for category in batch.categories})
    numbers = {name: number for number, name in enumerate(categories)}
    documents = np.zeros(sum(len(batch.texts) for batch, _ in batches), dtype=DOCUMENT)
    parts: list[npt.NDArray[np.int32]] = []
    begin = 0
    for batch, segment in batches:
        end = begin + len(batch.texts)
        tokens, lengths, unlearned, straddles = _encode_batch(batch, encoder)
        parts.append(tokens)
        documents["segment"][begin:end] = segment
        documents["tokens"][begin:end] = lengths
        documents["unlearned"][begin:end] = unlearned
        documents["straddles"][begin:end] = straddles
        documents["category"][begin:end] = [numbers[category] for category in batch.categories]
        documents["characters"][begin:end] = [len(text) for text in batch.texts]
        documents["bytes"][begin:end] = [len(text.encode()) for text in batch.texts]
        begin = end
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32), documents, categories


def _encode_batch(
    batch: RecordBatch, encoder: Encoder
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Encode source and target together, as one text, and put bos and eos around it.

    Encoded apart, a merge across the seam would be lost and the target would get a space of its own. A token that lies
    on both sides of the seam belongs to the target, which is learned whole.
    """
    encoded, source_tokens, straddles = encoder.encode_with_seam(batch.texts, batch.source_characters)
    bos = [encoder.bos_token_id] if encoder.bos_token_id is not None else []
    eos = [encoder.eos_token_id] if encoder.eos_token_id is not None else []
    lengths = np.diff(encoded.offsets) + len(bos) + len(eos)
    ends = np.cumsum(lengths)
    tokens = np.empty(int(ends[-1]), dtype=np.int32)
    # where each text token goes: behind the markers of all documents before it, and behind its own bos
    shift = np.arange(len(batch.texts)) * (len(bos) + len(eos)) + len(bos)
    tokens[np.arange(len(encoded.ids)) + np.repeat(shift, np.diff(encoded.offsets))] = encoded.ids
    if bos:
        tokens[ends - lengths] = bos[0]
    if eos:
        tokens[ends - 1] = eos[0]
    return tokens, lengths, source_tokens.astype(np.int64) + len(bos), straddles


def _read_cached(folder: Path, digest: str, shard: Shard) -> EncodedShard | None:
    try:
        content = json.loads((folder / "shard.json").read_text(encoding="utf-8"))
        sums = content.pop("crc32")
        found = EncodedShard(folder, content["categories"], _refusals(shard, content["refused"]), digest)
        whole = sums == _checksums(found.tokens(), found.documents(), content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None
    return found if whole and content["content_hash"] == digest else None


def _checksums(tokens: npt.NDArray[Any], documents: npt.NDArray[Any], content: dict[str, Any]) -> list[int]:
    return [zlib.crc32(part) for part in (tokens.tobytes(), documents.tobytes(), json.dumps(content).encode())]


@lru_cache(maxsize=1)
def _encoder(tokenizer_dir: Path, expected_key: str) -> Encoder:
    """Load the tokenizer once a worker process.

    Raises:
        InputError: the folder has changed since the command began.
    """
    encoder = load_encoder(tokenizer_dir)
    if tokenizer_key(tokenizer_dir, encoder) != expected_key:
        raise InputError("was changed while the corpus was being encoded", path=tokenizer_dir, remedy="start again")
    return encoder
