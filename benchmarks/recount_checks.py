"""What a corpus should give, what lies in its Arrow files, and what of its ledger does not agree with either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sentencepiece import SentencePieceProcessor

from benchmarks.independent_reader import Found, read_file

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Expected:
    """What SentencePiece makes of a file's text.

    Attributes:
        found: its records.
        lengths: [documents] tokens of each, bos and eos among them.
        per_category: category to [vocabulary], how often each id occurs.
    """

    found: Found
    lengths: Counts
    per_category: dict[str, Counts]


@dataclass(frozen=True)
class Part:
    """What lies in one Arrow file: `counts` is how often each id occurs."""

    rows: int
    tokens: int
    learned: int
    pieces: int
    fill: float
    counts: Counts


def expect(path: Path, processor: SentencePieceProcessor) -> Expected:
    """Encode a file's documents with nothing of ours in between."""
    found = read_file(path)
    lengths = np.zeros(len(found.texts), dtype=np.int64)
    per_category: dict[str, Counts] = {}
    for number, (text, category) in enumerate(zip(found.texts, found.categories, strict=True)):
        ids = [processor.bos_id(), *processor.encode(text), processor.eos_id()]
        lengths[number] = len(ids)
        counts = per_category.setdefault(category, np.zeros(processor.get_piece_size(), dtype=np.int64))
        np.add.at(counts, ids, 1)
    return Expected(found, lengths, per_category)


def count_part(path: Path, max_length: int, processor: SentencePieceProcessor) -> Part:
    """Count what lies in an Arrow file, and hold the rows to their pieces."""
    counts = np.zeros(processor.get_piece_size(), dtype=np.int64)
    rows = learned = pieces = 0
    with pa.memory_map(str(path)) as source:
        for batch in pa.ipc.open_stream(source):
            ids, labels, seq_lens = (batch.column(name).values.to_numpy() for name in batch.schema.names)
            assert len(ids) == len(labels) == seq_lens.sum()
            assert (labels[labels != -100] == ids[labels != -100]).all()
            assert np.diff(batch.column("input_ids").offsets.to_numpy()).max() <= max_length
            counts += np.bincount(ids, minlength=len(counts))
            rows += batch.num_rows
            learned += int((labels != -100).sum())
            pieces += len(seq_lens)
    tokens = int(counts.sum())
    return Part(rows, tokens, learned, pieces, round(tokens / (rows * max_length), 6), counts)


def compare_files(listed: Sequence[dict[str, Any]], expected: Mapping[str, Expected]) -> list[str]:
    """Compare the ledger's line of each file, by the file's name in the ledger."""
    problems = [f"{line['file']} was not there" for line in listed if line["file"] not in expected]
    lines = {line["file"]: line for line in listed}
    for file, entry in expected.items():
        texts = entry.found.texts
        right = {
            "documents": len(texts),
            "characters": sum(map(len, texts)),
            "text_bytes": sum(len(text.encode()) for text in texts),
            "tokens": int(entry.lengths.sum()),
            "refused_lines": len(entry.found.refused),
        }
        problems += _unequal(file, lines.get(file, {}), right)
    return problems


def compare_refused(listed: Sequence[dict[str, Any]], expected: Mapping[str, Expected]) -> list[str]:
    """Compare which lines were refused, by file and number."""
    found = sorted((line["file"], line["line"]) for line in listed)
    right = sorted((file, number) for file, entry in expected.items() for number in entry.found.refused)
    return [] if found == right else [f"refused: {sorted(set(found) ^ set(right))[:10]} in one of the two alone"]


def compare_categories(manifest: dict[str, Any], expected: Mapping[str, Expected]) -> list[str]:
    """Compare what was read of each category, and add up what became of it."""
    right: dict[str, dict[str, int]] = {}
    for entry in expected.values():
        for text, category, length in zip(
            entry.found.texts, entry.found.categories, entry.lengths.tolist(), strict=True
        ):
            own = right.setdefault(category, {"documents": 0, "characters": 0, "tokens": 0})
            own["documents"] += 1
            own["characters"] += len(text)
            own["tokens"] += length
    problems = [f"there is no category {name}" for name in manifest["categories"].keys() - right.keys()]
    for name, own in right.items():
        line = manifest["categories"].get(name, {"read": {}})
        problems += _unequal(f"category {name}", line["read"], own)
        if not line["read"]:
            continue
        for what in ("documents", "tokens"):
            left_out = sum(line[reason][what] for reason in ("duplicates", "held_out", "thinned"))
            kept = own[what] - left_out + line["repeated"][what]
            problems += _unequal(f"category {name}", line, {what: kept})
            problems += _unequal(f"category {name}", {"sum": sum(line[f"{what}_per_bucket"])}, {"sum": kept})
        added = line["not_learned"]["added_bos"]
        learned = line["tokens"] + added - sum(line["not_learned"].values())
        problems += _unequal(f"category {name}", line, {"learned_tokens": learned})
    return problems


def compare_buckets(
    buckets: Sequence[dict[str, Any]],
    parts: Sequence[Part],
    names: Sequence[str] = ("rows", "tokens", "learned_tokens", "pieces", "fill"),
) -> list[str]:
    """Compare the ledger's buckets with their Arrow files."""
    if len(buckets) != len(parts):
        return [f"{len(buckets)} buckets in the ledger, {len(parts)} Arrow files"]
    problems = []
    for bucket, part in zip(buckets, parts, strict=True):
        right = {
            "rows": part.rows,
            "tokens": part.tokens,
            "learned_tokens": part.learned,
            "pieces": part.pieces,
            "fill": part.fill,
        }
        problems += _unequal(f"bucket {bucket['bucket']}", bucket, {name: right[name] for name in names})
    return problems


def compare_totals(manifest: dict[str, Any], expected: Mapping[str, Expected], parts: Sequence[Part]) -> list[str]:
    """Compare the sums over the whole corpus."""
    texts = [text for entry in expected.values() for text in entry.found.texts]
    right = {
        "files": len(expected),
        "documents": len(texts),
        "characters": sum(map(len, texts)),
        "text_bytes": sum(len(text.encode()) for text in texts),
        "tokens": int(sum(entry.lengths.sum() for entry in expected.values())),
        "refused_lines": sum(len(entry.found.refused) for entry in expected.values()),
        "tokens_in_rows": sum(part.tokens for part in parts),
        "learned_tokens": sum(part.learned for part in parts),
        "rows": sum(part.rows for part in parts),
    }
    return _unequal("totals", manifest["totals"], right)


def compare_ids(
    manifest: dict[str, Any],
    expected: Mapping[str, Expected],
    found: tuple[Sequence[Part], Sequence[Part]],
    weights: Mapping[str, float],
) -> list[str]:
    """Compare how often each token id occurs with what SentencePiece makes of the text.

    Which documents a share takes away is not known here: of a category that is thinned, the ids that are missing must
    be among its own, and as many as the ledger says.

    Args:
        manifest: the ledger.
        expected: what the text gives.
        found: the corpus's parts, and its holdout's, where it has one.
        weights: how often categories are taken, where not once; 2 or more are whole numbers.
    """
    wanted: Any = 0
    may_miss: Any = 0
    for entry in expected.values():
        for category, counts in entry.per_category.items():
            weight = weights.get(category, 1.0)
            wanted = wanted + counts * (int(weight) if weight >= 1 else 1)
            may_miss = may_miss + counts * (weight < 1)
    parts, holdout = found
    missing = wanted - sum(part.counts for part in (*parts, *holdout))
    thinned = int(manifest["totals"]["thinned"]["tokens"])
    problems = []
    if (missing < 0).any() or (missing > may_miss).any() or int(missing.sum()) != thinned:
        wrong = int(((missing < 0) | (missing > may_miss)).sum())
        problems.append(f"{wrong} token ids occur too often or too seldom; {missing.sum()} missing, {thinned} thinned")
    in_holdout = sum(part.tokens for part in holdout)
    return problems + _unequal("held out", manifest["totals"]["held_out"], {"tokens": in_holdout})


def _unequal(where: str, found: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    return [
        f"{where}: {name}: {found.get(name)}, not {value}" for name, value in right.items() if found.get(name) != value
    ]
