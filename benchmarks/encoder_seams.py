"""What does it cost to find where source and target meet among the tokens of 100,000 records?

    python benchmarks/encoder_seams.py --data DIR

DIR holds ``llama2_tokenizer/`` and ``pretrain/`` with records that have a source; they are repeated up to the number
asked for. Measured by turns, in CPU seconds: encoding alone, encoding with the seams of all texts found together, and
the seams found text by text, as was done before.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.jsonl import read_jsonl
from colossal_llama2.tokenizer.encoder import EncodedTexts, Encoder
from colossal_llama2.tokenizer.loading import load_encoder
from colossal_llama2.tokenizer.seams import TokenWidths

_BATCH = 4000


@dataclass(frozen=True)
class Settings:
    """Measure what finding the seams of source and target adds to encoding."""

    data: Path
    """Folder with llama2_tokenizer/ and pretrain/."""

    records: int = 100_000
    """Records to encode."""

    rounds: int = 5
    """Times that each way is measured."""

    output: Path = Path(__file__).resolve().parent / "results" / "encoder_seams.json"
    """File to write the result to."""


def main(settings: Settings) -> None:
    """Measure both encoders, save medians."""
    files = sorted((settings.data / "pretrain").rglob("*.jsonl"))
    pairs = [(record["source"], record["target"]) for path in files for _, record in read_jsonl(path)]
    pairs = list(islice(cycle([pair for pair in pairs if pair[0]]), settings.records))
    texts, splits = [source + target for source, target in pairs], [len(source) for source, _ in pairs]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    result: dict[str, Any] = {"machine": describe_machine(), "records": len(texts), "megabytes": round(megabytes, 1)}
    for kind in ("reference", "gigatoken"):
        encoder = load_encoder(settings.data / "llama2_tokenizer", kind="auto" if kind == "gigatoken" else "reference")
        result[encoder.kind] = _measure(encoder, texts, splits, settings.rounds)
        cli.say(f"{encoder.kind}: {result[encoder.kind]}")
    settings.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _measure(encoder: Encoder, texts: list[str], splits: list[int], rounds: int) -> dict[str, float]:
    def one_by_one(texts: list[str], splits: list[int]) -> list[int]:
        return _one_by_one(encoder.encode(texts), texts, splits, encoder._widths)

    ways: dict[str, Callable[[list[str], list[int]], Any]] = {
        "encoding": lambda texts, splits: encoder.encode(texts),
        "with_seams": lambda texts, splits: encoder.encode_with_seam(texts, splits)[1].tolist(),
        "with_seams_one_by_one": one_by_one,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[Any]] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.process_time()
            batches = range(0, len(texts), _BATCH)
            found[name] = [way(texts[at : at + _BATCH], splits[at : at + _BATCH]) for at in batches]
            times[name].append(time.process_time() - begun)
    assert found["with_seams"] == found["with_seams_one_by_one"]
    return {f"{name}_cpu_seconds": round(statistics.median(values), 3) for name, values in times.items()}


def _one_by_one(
    encoded: EncodedTexts, texts: Sequence[str], splits: Sequence[int], widths: TokenWidths | None
) -> list[int]:
    """Count the tokens before each seam in a Python loop."""
    assert widths is not None
    counts = []
    for index, (text, split) in enumerate(zip(texts, splits, strict=True)):
        ends = np.cumsum(widths.widths[encoded.of(index)]) - widths.prefix
        assert ends[-1] == len(text.encode())
        counts.append(int(np.searchsorted(ends, len(text[:split].encode()), side="right")))
    return counts


if __name__ == "__main__":
    cli.run(Settings, main)
