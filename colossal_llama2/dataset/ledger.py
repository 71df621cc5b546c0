"""Where every token went: sums over documents, files, categories and buckets that must balance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.encoding import EncodedShard
from colossal_llama2.dataset.inputs import InputFile, Shard
from colossal_llama2.dataset.planning import Corpus
from colossal_llama2.dataset.splicing import cut_documents

MANIFEST = "manifest.json"
VERSION = 1


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


class UnbalancedError(RuntimeError):
    """The ledger's sums differ: a defect of this program, never of its input."""


def file_ledger(
    files: Sequence[InputFile], shards: Sequence[Shard], encoded: Sequence[EncodedShard]
) -> list[dict[str, Any]]:
    """Count what each file gave: records, characters, bytes, tokens, refused lines."""
    by_file: dict[Path, list[EncodedShard]] = {file.path: [] for file in files}
    for shard, entry in zip(shards, encoded, strict=True):
        by_file[shard.file.path].append(entry)
    entries = []
    for file in files:
        own = by_file[file.path]
        tables = [entry.documents() for entry in own]
        entries.append(
            {
                "file": file.name,
                "bytes": file.num_bytes,
                "sha256_of_shards": [entry.content_hash for entry in own],
                "documents": sum(len(table) for table in tables),
                "characters": sum(int(table["characters"].sum()) for table in tables),
                "text_bytes": sum(int(table["bytes"].sum()) for table in tables),
                "tokens": sum(int(table["tokens"].sum()) for table in tables),
                "refused_lines": sum(len(entry.refusals) for entry in own),
            }
        )
    return entries


def category_ledger(
    corpus: Corpus, buckets: npt.NDArray[Any], num_buckets: int, max_length: int
) -> dict[str, dict[str, Any]]:
    """Count each category: documents, characters, tokens in and learned, what is not learned and why, its buckets."""
    pieces = cut_documents(corpus.tokens, max_length)
    unlearned_here = np.clip(corpus.unlearned[pieces.documents] - pieces.starts, 0, pieces.lengths)
    continued = pieces.starts > 0
    lost_first = (continued & (unlearned_here == 0)).astype(np.int64)
    no_bos = (~continued & (unlearned_here == 0)).astype(np.int64)
    ledger: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(corpus.category_names):
        documents = corpus.categories == number
        of_pieces = documents[pieces.documents]
        tokens = int(corpus.tokens[documents].sum())
        begins = int(documents.sum())
        source = int(unlearned_here[of_pieces].sum()) + int(no_bos[of_pieces].sum()) - begins
        continuations = int(lost_first[of_pieces].sum())
        ledger[name] = {
            "documents": begins,
            "characters": int(corpus.characters[documents].sum()),
            "tokens": tokens,
            "learned_tokens": tokens - begins - source - continuations,
            "not_learned": {
                "first_of_document": begins,
                "source": source,
                "first_of_continuation": continuations,
            },
            "documents_cut": int((corpus.tokens[documents] > max_length).sum()),
            "documents_per_bucket": np.bincount(buckets[documents], minlength=num_buckets).tolist(),
            "tokens_per_bucket": _sum_by(buckets[documents], corpus.tokens[documents], num_buckets),
        }
    return ledger


def _sum_by(buckets: npt.NDArray[Any], values: npt.NDArray[Any], num_buckets: int) -> list[int]:
    sums: list[int] = np.bincount(buckets, weights=values, minlength=num_buckets).astype(np.int64).tolist()
    return sums


def balance(ledger: dict[str, Any], written: Sequence[WrittenBucket]) -> None:
    """Compare what came in with what was written, in total and bucket by bucket.

    Raises:
        UnbalancedError: a sum differs.
    """
    files, categories = ledger["files"], ledger["categories"].values()
    checks = {
        "documents": (sum(f["documents"] for f in files), sum(c["documents"] for c in categories)),
        "characters": (sum(f["characters"] for f in files), sum(c["characters"] for c in categories)),
        "documents of buckets": (
            sum(f["documents"] for f in files),
            sum(sum(c["documents_per_bucket"]) for c in categories),
        ),
        "tokens of files and categories": (sum(f["tokens"] for f in files), sum(c["tokens"] for c in categories)),
        "tokens in and out": (sum(f["tokens"] for f in files), sum(bucket.tokens for bucket in written)),
        "learned tokens": (
            sum(c["learned_tokens"] for c in categories),
            sum(bucket.learned_tokens for bucket in written),
        ),
    }
    for bucket in written:
        planned = sum(c["tokens_per_bucket"][bucket.bucket] for c in categories)
        checks[f"tokens of bucket {bucket.bucket}"] = (planned, bucket.tokens)
    for name, (left, right) in checks.items():
        if left != right:
            raise UnbalancedError(f"the ledger does not balance: {name}: {left} and {right}")


def bucket_ledger(
    corpus: Corpus, buckets: npt.NDArray[Any], written: Sequence[WrittenBucket], max_length: int
) -> list[dict[str, Any]]:
    """List the buckets with their documents and characters, and their fill: tokens over what their rows could hold."""
    documents = np.bincount(buckets, minlength=len(written)).tolist()
    characters = _sum_by(buckets, corpus.characters, len(written))
    return [
        {
            **asdict(bucket),
            "documents": documents[bucket.bucket],
            "characters": characters[bucket.bucket],
            "fill": round(bucket.tokens / (bucket.rows * max_length), 6),
        }
        for bucket in written
    ]


def write_manifest(ledger: dict[str, Any], folder: Path) -> None:
    """Write the ledger beside the parts."""
    (folder / MANIFEST).write_text(json.dumps(ledger, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
