"""Shards of jsonl to shards of tokens: each document as bos, text, eos, behind one another in one int32 array."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.inputs import Shard, first_line_number, read_shard
from colossal_llama2.dataset.records import Record, parse_pretraining_record
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import iterate_lines
from colossal_llama2.outputs import whole_directory
from colossal_llama2.tokenizer.loading import Encoder, load_encoder

LAYOUT = 1
_BATCH_CHARACTERS = 1 << 21
# Per document: tokens in all (bos and eos among them), how many at its beginning are not learned (bos, source),
# category (index into the shard's list), characters and UTF-8 bytes of its text.
DOCUMENT = np.dtype(
    [("tokens", "<i8"), ("unlearned", "<i8"), ("category", "<i4"), ("characters", "<i8"), ("bytes", "<i8")]
)


@dataclass(frozen=True)
class Refusal:
    """A line that is not a record, and why."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class EncodingJob:
    """What a worker needs to encode shards."""

    tokenizer_dir: Path
    cache_dir: Path
    skip_bad_records: bool


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
        """Map the flat tokens."""
        tokens: npt.NDArray[np.int32] = np.load(self.folder / "tokens.npy", mmap_mode="r")
        return tokens


def encode_shard(shard: Shard, job: EncodingJob) -> EncodedShard:
    """Encode one shard, or find it encoded already.

    The cache is keyed by what decides the tokens: the bytes, the tokenizer, the mode and the layout. A damaged entry is
    encoded again.

    Raises:
        InputError: a line is not a record, and bad records are not to be skipped.
    """
    lines = list(read_shard(shard))
    digest = hashlib.sha256(b"".join(lines)).hexdigest()
    encoder = _encoder(job.tokenizer_dir)
    mode = "skip" if job.skip_bad_records else "error"
    place = (
        f"{shard.file.name}:{shard.start}"  # a refusal names its file, so the same bytes elsewhere are another entry
    )
    key = hashlib.sha256(f"{LAYOUT} {encoder.fingerprint} {digest} {mode} {place}".encode()).hexdigest()
    folder = job.cache_dir / f"tokens-{key[:32]}"
    found = _read_cached(folder, digest)
    if found is not None:
        return found
    shutil.rmtree(folder, ignore_errors=True)
    records, refusals = _parse(shard, lines, job.skip_bad_records)
    tokens, documents, categories = _encode(records, encoder)
    with whole_directory(folder, overwrite=True) as work:
        np.save(work / "tokens.npy", tokens)
        np.save(work / "documents.npy", documents)
        content = {
            "content_hash": digest,
            "categories": categories,
            "refusals": [asdict(refusal) for refusal in refusals],
            "crc32": [zlib.crc32(tokens.tobytes()), zlib.crc32(documents.tobytes())],
        }
        (work / "shard.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return EncodedShard(folder, categories, refusals, digest)


def _parse(shard: Shard, lines: Sequence[bytes], skip: bool) -> tuple[list[Record], list[Refusal]]:
    records: list[Record] = []
    refusals: list[Refusal] = []
    # Numbered from 1 inside the shard, and from the file's beginning only where a line must be named.
    for number, raw in iterate_lines(lines, first_line=1 if not shard.start else 2):
        inside = number - 1 if not shard.start else number - 2
        try:
            records.append(parse_pretraining_record(raw, shard.file.path, number))
        except InputError as error:
            line = first_line_number(shard) + inside
            if not skip:
                raise InputError(error.what, path=shard.file.path, line=line, remedy=_with_skip(error)) from None
            refusals.append(Refusal(shard.file.name, line, error.what))
    return records, refusals


def _with_skip(error: InputError) -> str:
    return f"{error.remedy}, or pass --bad_records skip" if error.remedy else "mend it, or pass --bad_records skip"


def _encode(records: Sequence[Record], encoder: Encoder) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any], list[str]]:
    categories = sorted({record.category for record in records})
    numbers = {name: number for number, name in enumerate(categories)}
    documents = np.zeros(len(records), dtype=DOCUMENT)
    parts: list[npt.NDArray[np.int32]] = []
    begin = 0
    while begin < len(records):
        end, characters = begin, 0
        while end < len(records) and (end == begin or characters < _BATCH_CHARACTERS):
            characters += len(records[end].source) + len(records[end].target)
            end += 1
        batch = records[begin:end]
        tokens, lengths, unlearned = _encode_batch(batch, encoder)
        parts.append(tokens)
        texts = [record.source + record.target for record in batch]
        documents["tokens"][begin:end] = lengths
        documents["unlearned"][begin:end] = unlearned
        documents["category"][begin:end] = [numbers[record.category] for record in batch]
        documents["characters"][begin:end] = [len(text) for text in texts]
        documents["bytes"][begin:end] = [len(text.encode()) for text in texts]
        begin = end
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32), documents, categories


def _encode_batch(
    records: Sequence[Record], encoder: Encoder
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Encode source and target together, as one text, and put bos and eos around it.

    Encoded apart, a merge across the seam would be lost and the target would get a space of its own. A token that lies
    on both sides of the seam belongs to the target, which is learned whole.
    """
    encoded, source_tokens = encoder.encode_with_split(
        [record.source + record.target for record in records], [len(record.source) for record in records]
    )
    bos = [encoder.bos_token_id] if encoder.bos_token_id is not None else []
    eos = [encoder.eos_token_id] if encoder.eos_token_id is not None else []
    lengths = np.diff(encoded.offsets) + len(bos) + len(eos)
    ends = np.cumsum(lengths)
    tokens = np.empty(int(ends[-1]), dtype=np.int32)
    # where each text token goes: behind the markers of all documents before it, and behind its own bos
    shift = np.arange(len(records)) * (len(bos) + len(eos)) + len(bos)
    tokens[np.arange(len(encoded.ids)) + np.repeat(shift, np.diff(encoded.offsets))] = encoded.ids
    if bos:
        tokens[ends - lengths] = bos[0]
    if eos:
        tokens[ends - 1] = eos[0]
    return tokens, lengths, source_tokens.astype(np.int64) + len(bos)


def _read_cached(folder: Path, digest: str) -> EncodedShard | None:
    try:
        content = json.loads((folder / "shard.json").read_text(encoding="utf-8"))
        shard = EncodedShard(
            folder, content["categories"], [Refusal(**entry) for entry in content["refusals"]], content["content_hash"]
        )
        sums = [zlib.crc32(shard.tokens().tobytes()), zlib.crc32(shard.documents().tobytes())]
        return shard if sums == content["crc32"] and shard.content_hash == digest else None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


@lru_cache(maxsize=1)
def _encoder(tokenizer_dir: Path) -> Encoder:
    """Load the tokenizer once a worker process."""
    return load_encoder(tokenizer_dir)
