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
    by_file: dict[str, list[tuple[EncodedShard, int]]] = {file.name: [] for file in files}
    for shard, entry in zip(shards, encoded, strict=True):
        for number, segment in enumerate(shard.segments):
            by_file[segment.file.name].append((entry, number))
    entries = []
    for file in files:
        own = by_file[file.name]
        tables = [_documents_of(entry, number) for entry, number in own]
        entries.append(
            {
                "file": file.name,
                "bytes": file.num_bytes,
                "sha256_of_shards": [entry.content_hash for entry, _ in own],
                "documents": sum(len(table) for table in tables),
                "characters": sum(int(table["characters"].sum()) for table in tables),
                "text_bytes": sum(int(table["bytes"].sum()) for table in tables),
                "tokens": sum(int(table["tokens"].sum()) for table in tables),
                "refused_lines": sum(
                    refusal.file == file.name
                    for entry in {id(entry): entry for entry, _ in own}.values()
                    for refusal in entry.refusals
                ),
            }
        )
    return entries


def _documents_of(entry: EncodedShard, segment: int) -> npt.NDArray[Any]:
    table = entry.documents()
    return table[table["segment"] == segment]


def category_ledger(
    corpus: Corpus, buckets: npt.NDArray[Any], num_buckets: int, max_length: int
) -> dict[str, dict[str, Any]]:
    """Count each category: documents, characters, tokens in and learned, what is not learned and why, its buckets."""
    pieces = cut_documents(corpus.tokens, max_length)
    of_pieces = corpus.categories[pieces.documents]
    unlearned_here = np.clip(corpus.unlearned[pieces.documents] - pieces.starts, 0, pieces.lengths)
    continued = pieces.starts > 0
    num_categories = len(corpus.category_names)
    cells = corpus.categories * num_buckets + buckets
    shape = (num_categories, num_buckets)

    def of_documents(values: npt.NDArray[Any]) -> list[int]:
        return _sum_by(corpus.categories, values, num_categories)

    columns: dict[str, list[Any]] = {
        "documents": np.bincount(corpus.categories, minlength=num_categories).tolist(),
        "characters": of_documents(corpus.characters),
        "tokens": of_documents(corpus.tokens),
        "documents_cut": of_documents(corpus.tokens > max_length),
        "source": _sum_by(of_pieces, np.maximum(unlearned_here - ~continued, 0), num_categories),
        "first_of_continuation": _sum_by(of_pieces, continued & (unlearned_here == 0), num_categories),
        "continuations": _sum_by(of_pieces, continued, num_categories),
        "straddling_tokens_learned": of_documents(corpus.straddles),
        "documents_per_bucket": np.bincount(cells, minlength=num_categories * num_buckets).reshape(shape).tolist(),
        "tokens_per_bucket": np.reshape(_sum_by(cells, corpus.tokens, num_categories * num_buckets), shape).tolist(),
    }
    return {
        name: _category_entry({column: values[number] for column, values in columns.items()})
        for number, name in enumerate(corpus.category_names)
    }


def _category_entry(counts: dict[str, Any]) -> dict[str, Any]:
    not_learned = {
        "first_of_document": counts["documents"],
        "source": counts["source"],
        "first_of_continuation": counts["first_of_continuation"],
    }
    return {
        **{name: counts[name] for name in ("documents", "characters", "tokens")},
        "learned_tokens": counts["tokens"] - sum(not_learned.values()),
        "not_learned": not_learned,
        "straddling_tokens_learned": counts["straddling_tokens_learned"],
        "documents_cut": counts["documents_cut"],
        "cuts": {"longer_than_max_length": counts["continuations"]},
        **{name: counts[name] for name in ("documents_per_bucket", "tokens_per_bucket")},
    }


def _sum_by(numbers: npt.NDArray[Any], values: npt.NDArray[Any], size: int) -> list[int]:
    sums: list[int] = np.bincount(numbers, weights=values, minlength=size).astype(np.int64).tolist()
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
    cuts = sum(c["cuts"]["longer_than_max_length"] for c in categories)
    checks["pieces"] = (sum(f["documents"] for f in files) + cuts, sum(bucket.pieces for bucket in written))
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
