"""Does a step of training ever wait for its rows?

    python benchmarks/loading.py [--rows 2000] [--output FILE.json]

A corpus of full rows of 4096 tokens is written, and read as `train.py` reads it, by a consumer that sleeps for as long
as a step would take: 12,500 tokens a second and rank, what a model of 7 billion parameters does on one fast GPU; five
times that; and eight ranks of both speeds, whose loaders all share one process here, which is harder than a process
each. What a loader works meanwhile is done by its thread, beside the sleep. Reported is the time from asking for a step
to having it, of the rank that waits longest, as a share of the step, with the page cache warm and after the corpus's
pages were dropped. Where other work shares the machine, most of that time is waiting for a processor: what the asking
thread itself computed meanwhile stands beside it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.ledger import MANIFEST, VERSION
from colossal_llama2.dataset.loader import GlobalBatches, LoaderSettings
from colossal_llama2.dataset.parts import IGNORED, PartWriter, Row

TOKENS_PER_SECOND = 12_500
_DOCUMENT_TOKENS = 300  # what a row's pieces are about as long as


@dataclass(frozen=True)
class LoadingSettings:
    """Measure how long a step waits for its rows."""

    rows: int = 2000
    """Rows of the corpus."""
    max_length: int = 4096
    """Tokens of each."""
    seconds: float = 6
    """How long each case runs."""
    output: Path = Path(__file__).resolve().parent / "results" / "loading.json"
    """Where the figures are written."""


@dataclass(frozen=True)
class Case:
    """One consumer.

    Attributes:
        micro_batch_size: rows a rank computes at a time.
        accumulation_steps: micro-batches of a step.
        speed: tokens a second that one rank computes.
        ranks: loaders that run at once on this machine, each a rank's.
        is_warm: whether the corpus is in the page cache when it begins.
    """

    micro_batch_size: int
    accumulation_steps: int
    speed: int
    ranks: int
    is_warm: bool


def main(settings: LoadingSettings) -> int:
    """Measure every case; return 1 when one waits for more than a hundredth of its time."""
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "load average before and after": [round(os.getloadavg()[0], 2)],
        "rows": settings.rows,
        "max_length": settings.max_length,
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        corpus_dir = _write_corpus(Path(folder) / "corpus", settings)
        for case in _cases():
            entry = {**vars(case), **_measure(corpus_dir, case, settings)}
            result["cases"].append(entry)
            cli.say(
                f"micro-batch {case.micro_batch_size} x {case.accumulation_steps}, {case.ranks} ranks of "
                f"{case.speed:,} tokens/s, {'warm' if case.is_warm else 'cold'}: {entry['steps']} steps of "
                f"{entry['step ms']:.0f} ms, waiting {entry['share waited']:.3%} "
                f"(computing {entry['share computed while asking']:.3%}), p50 {entry['wait ms p50']:.3f} ms, "
                f"p99 {entry['wait ms p99']:.3f} ms, first {entry['first wait ms']:.0f} ms"
            )
    result["load average before and after"].append(round(os.getloadavg()[0], 2))
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if any(entry["share waited"] >= 0.01 for entry in result["cases"]) else 0


def _cases() -> Iterator[Case]:
    for micro_batch_size in (1, 2, 4, 8):
        for is_warm in (True, False):
            yield Case(micro_batch_size, 1, TOKENS_PER_SECOND, 1, is_warm)
    for is_warm in (True, False):
        yield Case(1, 8, TOKENS_PER_SECOND, 1, is_warm)
        yield Case(1, 1, 5 * TOKENS_PER_SECOND, 1, is_warm)
        yield Case(8, 1, 5 * TOKENS_PER_SECOND, 1, is_warm)
        yield Case(1, 1, TOKENS_PER_SECOND, 8, is_warm)
        yield Case(8, 1, TOKENS_PER_SECOND, 8, is_warm)
        yield Case(1, 1, 5 * TOKENS_PER_SECOND, 8, is_warm)


def _measure(corpus_dir: Path, case: Case, settings: LoadingSettings) -> dict[str, Any]:
    """Run a case for some seconds: all ranks of it step by step in this process, each with a loader of its own.

    The ranks compute at the same time, so one sleep stands for all of them, and the loaders' threads share what this
    process has of the processors: one core, which Python's lock sees to.
    """
    corpus = PreparedCorpus.open([corpus_dir])
    if not case.is_warm:
        _drop_pages(corpus_dir)
    else:
        for path in corpus_dir.rglob("*.arrow"):
            path.read_bytes()
    step = case.micro_batch_size * case.accumulation_steps * settings.max_length / case.speed
    num_steps = max(10, round(settings.seconds / step))
    loaders = [_steps(corpus, case, rank) for rank in range(case.ranks)]
    waits, own = [], []
    processor = time.process_time()
    for _ in range(num_steps):
        asked = [(time.perf_counter(), time.thread_time())]
        for loader in loaders:
            next(loader)
            asked.append((time.perf_counter(), time.thread_time()))
        longest, computed = np.diff(asked, axis=0).max(axis=0)
        waits.append(longest)
        own.append(computed)
        time.sleep(step)
    for loader in loaders:
        loader.close()
    later = np.array(waits[1:])  # before the first step there is nothing to read ahead beside
    return {
        "steps": num_steps,
        "step ms": round(1000 * step, 1),
        "share waited": round(float(later.sum()) / (step * len(later) + float(later.sum())), 6),
        "share computed while asking": round(float(np.mean(own[1:])) / step, 6),
        "wait ms p50": round(1000 * float(np.quantile(later, 0.5)), 4),
        "wait ms p99": round(1000 * float(np.quantile(later, 0.99)), 4),
        "first wait ms": round(1000 * waits[0], 2),
        "processor ms a step and rank": round(1000 * (time.process_time() - processor) / num_steps / case.ranks, 3),
    }


def _steps(corpus: PreparedCorpus, case: Case, rank: int) -> Any:
    """Yield a rank's steps, epoch after epoch."""
    batches = GlobalBatches(
        corpus, LoaderSettings(rank, case.ranks, case.micro_batch_size, case.accumulation_steps, seed=0)
    )
    epoch = 0
    while True:
        yield from batches.iterate(epoch)
        epoch += 1


def _write_corpus(folder: Path, settings: LoadingSettings) -> Path:
    draw = np.random.default_rng(0)
    folder.mkdir()
    length = settings.max_length
    with PartWriter(folder, None, 0) as writer:
        for _ in range(settings.rows):
            ids = draw.integers(3, 50_000, length, dtype=np.int32)
            bounds = np.unique(draw.integers(1, length, length // _DOCUMENT_TOKENS))
            seq_lens = np.diff(np.concatenate([[0], bounds, [length]])).astype(np.int32)
            labels = ids.copy()
            labels[np.cumsum(seq_lens) - seq_lens] = IGNORED
            writer.write(Row(ids, labels, seq_lens))
    manifest = {
        "version": VERSION,
        "max_length": length,
        "tokenizer": {"fingerprint": "none", "bos_token_id": 1, "eos_token_id": 2},
        "buckets": [{"bucket": 0, "rows": settings.rows, "arrow_sha256": writer.content_hash()}],
    }
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def _drop_pages(folder: Path) -> None:
    """Ask the kernel to forget what it holds of the files; pages that are mapped and were touched stay."""
    for path in folder.rglob("*.arrow"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    cli.run(LoadingSettings, main)
