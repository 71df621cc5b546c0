"""Where every token went: sums over documents, files, categories and buckets that must balance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from colossal_llama2.dataset.encoded import EncodedShard
from colossal_llama2.dataset.inputs import InputFile, Segment, Shard, first_line_number
from colossal_llama2.dataset.planning import Plan, Tally
from colossal_llama2.dataset.rows import CutCounts, WrittenBucket

MANIFEST: Final = "manifest.json"
FILES_FILE: Final = "files.jsonl"
REFUSED_FILE: Final = "refused_records.jsonl"
VERSION: Final = 2


class UnbalancedError(RuntimeError):
    """The ledger's sums differ: a defect of this program, never of its input."""


def write_file_ledger(
    files: Sequence[InputFile], shards: Sequence[Shard], encoded: Sequence[EncodedShard], folder: Path
) -> dict[str, int]:
    """Write what each file gave, a line a file, and every refused line; return the sums over all files.

    A corpus may have a million files, so neither list is ever held.
    """
    sums = {"files": 0, "bytes": 0, "documents": 0, "characters": 0, "text_bytes": 0, "tokens": 0, "refused_lines": 0}
    parts = _file_parts(shards, encoded)
    part = next(parts, None)
    with (
        (folder / FILES_FILE).open("w", encoding="utf-8") as listed,
        (folder / REFUSED_FILE).open("w", encoding="utf-8") as refused,
    ):
        for file in files:
            counts = dict.fromkeys(sums.keys() - {"files", "bytes"}, 0)
            hashes = []
            while part is not None and part.segment.file == file:
                hashes.append(part.content_hash)
                for name, value in part.counts.items():
                    counts[name] += value
                refused.writelines(part.refused)
                part = next(parts, None)
            entry = {"file": file.name, "bytes": file.num_bytes, **dict(sorted(counts.items()))}
            listed.write(json.dumps({**entry, "sha256_of_shards": hashes}, ensure_ascii=False) + "\n")
            sums["files"] += 1
            sums["bytes"] += file.num_bytes
            for name, value in counts.items():
                sums[name] += value
    assert part is None, "every segment belongs to a file"
    return sums


@dataclass(frozen=True)
class _FilePart:
    """What one segment of a file gave; `refused` are lines of the list of refused records."""

    segment: Segment
    content_hash: str
    counts: dict[str, int]
    refused: list[str]


def _file_parts(shards: Sequence[Shard], encoded: Sequence[EncodedShard]) -> Iterator[_FilePart]:
    for shard, result in zip(shards, encoded, strict=True):
        for number, (segment, row) in enumerate(zip(shard.segments, result.segments(), strict=True)):
            own = [line for line in result.refused if line.segment == number]
            first = first_line_number(segment) if own else 1
            lines = [
                {"file": segment.file.name, "line": first + line.lines_before, "reason": line.reason} for line in own
            ]
            counts = {
                "documents": int(row["documents"]),
                "characters": int(row["characters"]),
                "text_bytes": int(row["bytes"]),
                "tokens": int(row["tokens"]),
                "refused_lines": len(own),
            }
            written = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
            yield _FilePart(segment, result.content_hash, counts, written)


def category_ledger(plan: Plan, cuts: CutCounts, holdout: CutCounts) -> dict[str, dict[str, Any]]:
    """Account for each category: what came, what was left out and why, what is learned, where it is."""
    return {
        name: {
            "documents": int(plan.documents_per_bucket[number].sum()),
            "tokens": int(plan.tokens_per_bucket[number].sum()),
            "learned_tokens": _learned(int(plan.tokens_per_bucket[number].sum()), cuts, number),
            "read": _tally(plan.seen, number),
            "duplicates": _tally(plan.duplicates, number),
            "held_out": {
                **_tally(plan.held_out, number),
                "learned_tokens": _learned(int(plan.held_out.tokens[number]), holdout, number),
            },
            "repeated": _tally(plan.repeated, number),
            "thinned": _tally(plan.thinned, number),
            "not_learned": {
                "first_of_document": int(plan.documents_per_bucket[number].sum()),
                "source": int(cuts.source[number]),
                "first_of_continuation": int(cuts.first_of_continuation[number]),
                "added_bos": int(cuts.added_bos[number]),
            },
            "straddling_tokens_learned": int(plan.straddling[number]),
            "documents_cut": int(cuts.documents_cut[number]),
            "cuts": {
                "longer_than_max_length": int(cuts.longer_than_row[number]),
                "row_was_full": int(cuts.continuations[number] - cuts.longer_than_row[number]),
            },
            "documents_per_bucket": plan.documents_per_bucket[number].tolist(),
            "tokens_per_bucket": plan.tokens_per_bucket[number].tolist(),
        }
        for number, name in enumerate(plan.category_names)
    }


def _tally(tally: Tally, number: int) -> dict[str, int]:
    return {name: int(getattr(tally, name)[number]) for name in ("documents", "characters", "tokens")}


def _learned(tokens: int, cuts: CutCounts, number: int) -> int:
    return tokens + int(cuts.added_bos[number]) - int(cuts.unlearned[number])


def bucket_ledger(plan: Plan, written: Sequence[WrittenBucket], max_length: int) -> list[dict[str, Any]]:
    """List the buckets with their documents and characters, and their fill: tokens over what their rows could hold."""
    documents = plan.documents_per_bucket.sum(axis=0)
    return [
        {
            **asdict(bucket),
            "documents": int(documents[bucket.bucket]),
            "characters": int(plan.characters_per_bucket[bucket.bucket]),
            "fill": fill_of([bucket], max_length),
        }
        for bucket in written
    ]


def fill_of(written: Sequence[WrittenBucket], max_length: int) -> float:
    """Return tokens over what the rows could hold."""
    rows = sum(bucket.rows for bucket in written)
    return round(sum(bucket.tokens for bucket in written) / (rows * max_length), 6) if rows else 0.0


def balance(
    sums: dict[str, int],
    plan: Plan,
    results: Sequence[tuple[WrittenBucket, CutCounts]],
    holdout: tuple[WrittenBucket, CutCounts] | None,
) -> None:
    """Compare what came in with what was planned and with what was written, in total and bucket by bucket.

    Raises:
        UnbalancedError: a sum differs.
    """
    written = [bucket for bucket, _ in results]
    size = len(plan.category_names)
    cuts = CutCounts.sum_of([counts for _, counts in results], size)
    checks: dict[str, tuple[int, int]] = {}
    for name in ("documents", "characters", "tokens"):
        checks[f"{name} of files and categories"] = (sums[name], int(getattr(plan.seen, name).sum()))
    per_bucket = {"documents": plan.documents_per_bucket, "tokens": plan.tokens_per_bucket}
    for name, placed in per_bucket.items():
        kept = getattr(plan.seen, name) + getattr(plan.repeated, name)
        for left_out in (plan.duplicates, plan.held_out, plan.thinned):
            kept = kept - getattr(left_out, name)
        for number, category in enumerate(plan.category_names):
            checks[f"{name} of {category}"] = (int(kept[number]), int(placed[number].sum()))
    planned = plan.tokens_per_bucket.sum(axis=0)
    for bucket, counts in results:
        expected = int(planned[bucket.bucket] + counts.added_bos.sum())
        checks[f"tokens of bucket {bucket.bucket}"] = (expected, bucket.tokens)
        learned = int(planned[bucket.bucket] + counts.added_bos.sum() - counts.unlearned.sum())
        checks[f"learned tokens of bucket {bucket.bucket}"] = (learned, bucket.learned_tokens)
    placed_documents = int(plan.documents_per_bucket.sum())
    checks["pieces"] = (placed_documents + int(cuts.continuations.sum()), sum(bucket.pieces for bucket in written))
    parts = cuts.source + cuts.first_of_continuation + cuts.added_bos
    checks["reasons not to learn"] = (int(parts.sum()) + placed_documents, int(cuts.unlearned.sum()))
    if holdout is not None:
        bucket, counts = holdout
        expected = int(plan.held_out.tokens.sum() + counts.added_bos.sum())
        checks["tokens held out"] = (expected, bucket.tokens)
        checks["learned tokens held out"] = (expected - int(counts.unlearned.sum()), bucket.learned_tokens)
    for name, (left, right) in checks.items():
        if left != right:
            raise UnbalancedError(f"the ledger does not balance: {name}: {left} and {right}")


def totals(
    sums: dict[str, int], plan: Plan, written: Sequence[WrittenBucket], cuts: CutCounts, max_length: int
) -> dict[str, Any]:
    """Sum up the whole corpus."""
    left_out: dict[str, dict[str, int]] = {
        name: {
            "documents": int(getattr(plan, name).documents.sum()),
            "tokens": int(getattr(plan, name).tokens.sum()),
        }
        for name in ("duplicates", "held_out", "repeated", "thinned")
    }
    return {
        **sums,
        **left_out,
        "added_bos": int(cuts.added_bos.sum()),
        "tokens_in_rows": sum(bucket.tokens for bucket in written),
        "learned_tokens": sum(bucket.learned_tokens for bucket in written),
        "rows": sum(bucket.rows for bucket in written),
        "documents_cut": int(cuts.documents_cut.sum()),
        "fill": fill_of(written, max_length),
    }


def write_manifest(ledger: dict[str, Any], folder: Path) -> None:
    """Write the ledger beside the parts."""
    (folder / MANIFEST).write_text(json.dumps(ledger, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
