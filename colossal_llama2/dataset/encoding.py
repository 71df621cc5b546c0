"""Shards of jsonl to shards of tokens: each document as bos, text, eos, behind one another in one int32 array."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from colossal_llama2.dataset.inputs import Shard, first_line_number, read_shard
from colossal_llama2.dataset.records import Record, parse_pretraining_record
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import iterate_lines
from colossal_llama2.outputs import whole_directory
from colossal_llama2.tokenizer.folder import read_folder
from colossal_llama2.tokenizer.loading import Encoder, EncoderKind, load_encoder

LAYOUT = 3
_BATCH_CHARACTERS = 1 << 21
# Per document: tokens in all (bos and eos among them), how many at its beginning are not learned (bos, source),
# category (index into the shard's list), characters and UTF-8 bytes of its text, and whether a token lies across source
# and target.
DOCUMENT = np.dtype(
    [
        ("tokens", "<i8"),
        ("unlearned", "<i8"),
        ("category", "<i4"),
        ("characters", "<i8"),
        ("bytes", "<i8"),
        ("straddles", "?"),
    ]
)


@dataclass(frozen=True)
class Refusal:
    """A line that is not a record, and why."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class EncodingJob:
    """What a worker needs to encode shards.

    Attributes:
        tokenizer_dir: the tokenizer.
        tokenizer_key: see the function of that name.
        cache_dir: where encoded shards are kept.
        skip_bad_records: pass over a line that is not a record.
        encoder_kind: which encoder does the work; all give the same tokens, so no cache is keyed by it.
        proof: see `load_encoder`.
    """

    tokenizer_dir: Path
    tokenizer_key: str
    cache_dir: Path
    skip_bad_records: bool
    encoder_kind: EncoderKind = "reference"
    proof: str | None = None


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


def count_records(shard: Shard, skip_bad_records: bool) -> int:
    """Count a shard's records; done for all shards before the first is encoded, so that a mistake costs no time.

    Raises:
        InputError: a line is not a record, and bad records are not to be skipped.
    """
    records, _ = _parse(shard, list(read_shard(shard)), skip_bad_records)
    return len(records)


def encode_shard(shard: Shard, job: EncodingJob) -> EncodedShard:
    """Encode one shard, or find it encoded already.

    The cache is keyed by what decides the tokens: the bytes, the tokenizer, the mode and the layout; not by a place. A
    damaged entry is encoded again.

    Raises:
        InputError: a line is not a record, and bad records are not to be skipped.
    """
    lines = list(read_shard(shard))
    digest = hashlib.sha256(b"".join(lines)).hexdigest()
    # Only at the beginning of a file is a byte order mark no part of the text.
    deciding = [LAYOUT, job.tokenizer_key, digest, job.skip_bad_records, shard.start == 0]
    folder = job.cache_dir / f"tokens-{hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:32]}"
    found = _read_cached(folder, digest, shard)
    if found is not None:
        return found
    records, refused = _parse(shard, lines, job.skip_bad_records)
    tokens, documents, categories = _encode(
        records, _encoder(job.tokenizer_dir, job.tokenizer_key, job.encoder_kind, job.proof)
    )
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


def _parse(shard: Shard, lines: Sequence[bytes], skip: bool) -> tuple[list[Record], list[tuple[int, str]]]:
    """Parse a shard's lines; also return those refused, as (lines of the shard before it, reason)."""
    records: list[Record] = []
    refused: list[tuple[int, str]] = []
    first = 1 if shard.start == 0 else 2  # line 1 is where a byte order mark may stand
    for number, raw in iterate_lines(lines, first):
        try:
            records.append(parse_pretraining_record(raw, shard.file.path, number))
        except InputError as error:
            if not skip:
                line = first_line_number(shard) + number - first
                raise InputError(error.what, path=shard.file.path, line=line, remedy=_with_skip(error)) from None
            refused.append((number - first, error.what))
    return records, refused


def _refusals(shard: Shard, refused: Sequence[tuple[int, str]]) -> list[Refusal]:
    """Number refused lines through the file; the cache cannot know how many lines stand before the shard."""
    first = first_line_number(shard) if refused else 1
    return [Refusal(shard.file.name, first + before, reason) for before, reason in refused]


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
        tokens, lengths, unlearned, straddles = _encode_batch(batch, encoder)
        parts.append(tokens)
        texts = [record.source + record.target for record in batch]
        documents["tokens"][begin:end] = lengths
        documents["unlearned"][begin:end] = unlearned
        documents["straddles"][begin:end] = straddles
        documents["category"][begin:end] = [numbers[record.category] for record in batch]
        documents["characters"][begin:end] = [len(text) for text in texts]
        documents["bytes"][begin:end] = [len(text.encode()) for text in texts]
        begin = end
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32), documents, categories


def _encode_batch(
    records: Sequence[Record], encoder: Encoder
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Encode source and target together, as one text, and put bos and eos around it.

    Encoded apart, a merge across the seam would be lost and the target would get a space of its own. A token that lies
    on both sides of the seam belongs to the target, which is learned whole.
    """
    encoded, source_tokens, straddles = encoder.encode_with_seam(
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
def _encoder(tokenizer_dir: Path, expected_key: str, kind: EncoderKind, proof: str | None) -> Encoder:
    """Load the tokenizer once a worker process.

    Raises:
        InputError: the folder has changed since the command began.
    """
    encoder = load_encoder(tokenizer_dir, kind=kind, proof=proof)
    if tokenizer_key(tokenizer_dir, encoder) != expected_key:
        raise InputError("was changed while the corpus was being encoded", path=tokenizer_dir, remedy="start again")
    return encoder
