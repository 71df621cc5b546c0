"""The preparation of a corpus beside upstream's, a naive one, and the encoder alone.

    python benchmarks/prepare.py --corpus_dir DIR --tokenizer_dir DIR [--repeat_to_gb 1] [--single_document_gb 1]
        [--small_files 1000000]

DIR is a folder of jsonl of source, target, category. Every way is a process of its own, timed from its start to its
end with nothing in its cache, in turn and several times over; the run with the least seconds counts, all are kept.
MB are those of the input files. Memory is that of all processes at one time, see `process_tree`. What upstream's
algorithm is and how it was restated stands in `prepare_rivals`; it is run on a sample of the corpus where the whole
would take longer than a minute, with all its fixed costs, and its figures are those of the sample. gigatoken's proof,
made once a user and tokenizer, is made before the clock starts, and timed apart.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow as pa

from benchmarks.machine import describe_machine
from benchmarks.prepare_corpora import Corpus, repeated, sample, single_document, small_files, small_records
from benchmarks.process_tree import Measured, run_measured
from colossal_llama2 import cli

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ROOT / "tools" / "prepare_pretrain_dataset.py"
RIVALS = ROOT / "benchmarks" / "prepare_rivals.py"
COLUMNS = {
    "MB/s": "{:.2f}", "tokens/s": "{:,.0f}", "wall s": "{:.2f}", "CPU s": "{:.2f}", "peak MB": "{:,.0f}",
    "tokens lost": "{:,d}", "fill": "{:.4%}", "rows": "{:,d}",
}  # fmt: skip


@dataclass(frozen=True)
class PrepareBenchmark:
    """Measure the preparation of a corpus, and other ways of doing it."""

    corpus_dir: Path
    """Folder of jsonl: source, target, category."""
    tokenizer_dir: Path
    """Tokenizer that all use."""
    repeat_to_gb: float = 0
    """Also prepare the corpus repeated to so many gigabytes, a number before each text."""
    single_document_gb: float = 0
    """Also prepare one document of so many gigabytes."""
    small_files: int = 0
    """Also prepare so many files of two hundred bytes."""
    upstream_mb: float = 30
    """Megabytes of the sample that upstream's algorithm is run on; 0 leaves it out."""
    max_length: int = 4096
    """Tokens a row can hold."""
    rounds: int = 3
    """How often each is measured, in turn."""
    work_dir: Path | None = None
    """Where corpora and outputs are written, some six times the largest corpus; they are removed."""
    output: Path = ROOT / "benchmarks" / "results" / "prepare.json"
    """Where the figures are written."""


@dataclass
class Way:
    """One line of the table.

    Attributes:
        name: what is measured.
        corpus: what it is measured on.
        run: prepares the corpus in a folder, and returns its figures.
        rounds: how often, where it is not as often as the others.
        runs: the figures so far.
    """

    name: str
    corpus: Corpus
    run: Callable[[Path], dict[str, Any]]
    rounds: int = 0
    runs: list[dict[str, Any]] = field(default_factory=list)


def main(settings: PrepareBenchmark) -> None:
    """Measure, print and write."""
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "load average before and after": [round(os.getloadavg()[0], 2)],
        "max_length": settings.max_length,
    }
    if settings.work_dir is not None:
        settings.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.work_dir) as folder:
        work = Path(folder)
        corpus = Corpus.of(settings.corpus_dir)
        result["first use of the tokenizer"] = _first_use(settings, corpus, work)
        for ways in _sets_of_ways(settings, corpus, work):
            _measure(ways, work, settings.rounds)
            for way in ways:
                result.setdefault("ways", {})[way.name] = _entry(way)
            _show(ways)
            result["load average before and after"][1:] = [round(os.getloadavg()[0], 2)]
            settings.output.parent.mkdir(parents=True, exist_ok=True)
            settings.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sets_of_ways(settings: PrepareBenchmark, corpus: Corpus, work: Path) -> Iterator[list[Way]]:
    """Yield ways that are measured in turn with one another; a corpus lies there only while it is measured."""
    ours = partial(_ours, settings)
    with _made(work / "sample") as folder:
        ways = [
            Way("encoder alone, reference, 2 threads", corpus, _rival(settings, "encoder", corpus, "reference")),
            Way("encoder alone, auto, 2 threads", corpus, _rival(settings, "encoder", corpus, "auto")),
            Way("naive, reference, 2 threads", corpus, _rival(settings, "naive", corpus, "reference")),
            Way("naive, auto, 2 threads", corpus, _rival(settings, "naive", corpus, "auto")),
            Way("ours, 2 workers", corpus, ours(corpus, 2)),
            Way("ours, 2 workers, jsonl too", corpus, ours(corpus, 2, jsonl=True)),
            Way("ours, 1 worker", corpus, ours(corpus, 1)),
            Way("ours, 1 worker, jsonl too", corpus, ours(corpus, 1, jsonl=True)),
        ]
        if settings.upstream_mb:
            part = sample(corpus, folder, settings.upstream_mb)
            name = f"upstream's algorithm, {part.num_bytes / 1e6:.1f} of {corpus.num_bytes / 1e6:.1f} MB"
            ways.insert(0, Way(name, part, _rival(settings, "upstream", part), 1))
            ways.append(Way("ours, 2 workers, upstream's sample", part, ours(part, 2, jsonl=True), 1))
        yield ways
    with _made(work / "small-records") as folder:
        small = small_records(corpus, folder / "in")
        yield [
            Way("records of 200 bytes, ours, 2 workers", small, ours(small, 2)),
            Way("records of 200 bytes, naive, auto, 2 threads", small, _rival(settings, "naive", small)),
        ]
    large: list[tuple[float, str, Callable[..., Corpus]]] = [
        (settings.repeat_to_gb, "repeated", repeated),
        (settings.single_document_gb, "one document", single_document),
        (settings.small_files, "small files", small_files),
    ]
    for size, name, make in large:
        if not size:
            continue
        with _made(work / name.replace(" ", "-")) as folder:
            big = make(corpus, folder / "in", size)
            title = f"{name}, {big.num_bytes / 1e6:,.0f} MB in {big.num_files:,} files"
            ways = [Way(f"{title}, ours, 2 workers", big, ours(big, 2, bins=1 if name == "one document" else 10), 1)]
            if name == "repeated":
                ways.append(Way(f"{title}, naive, auto, 2 threads", big, _rival(settings, "naive", big), 1))
            yield ways


def _measure(ways: list[Way], work: Path, rounds: int) -> None:
    for number in range(rounds):
        for way in ways:
            if number < (way.rounds or rounds):
                with _made(work / "run") as folder:
                    way.runs.append(way.run(folder))
                cli.say(f"{way.name}: {way.runs[-1]['wall s']} s")


def _ours(
    settings: PrepareBenchmark, corpus: Corpus, workers: int, jsonl: bool = False, bins: int = 10
) -> Callable[[Path], dict[str, Any]]:
    def run(folder: Path) -> dict[str, Any]:
        command = [
            sys.executable, str(COMMAND),
            "--data_input_dirs", str(corpus.folder),
            "--tokenizer_dir", str(settings.tokenizer_dir),
            "--data_cache_dir", str(folder / "cache"),
            "--data_jsonl_output_dir", str(folder / "jsonl") if jsonl else "None",
            "--data_arrow_output_dir", str(folder / "arrow"),
            "--max_length", str(settings.max_length),
            "--num_workers", str(workers),
            "--num_spliced_dataset_bins", str(bins),
        ]  # fmt: skip
        measured = run_measured(command)
        ledger = json.loads((folder / "arrow" / "manifest.json").read_text(encoding="utf-8"))["totals"]
        tokens, rows = _count_rows(folder / "arrow")
        return _figures(settings, corpus, measured, (ledger["tokens"], tokens, rows))

    return run


def _count_rows(folder: Path) -> tuple[int, int]:
    """Return the tokens and rows that lie in the Arrow files, whatever the ledger says."""
    tokens = rows = 0
    for path in folder.rglob("*.arrow"):
        with pa.memory_map(str(path)) as source:
            for batch in pa.ipc.open_stream(source):
                column = batch.column("input_ids")
                tokens += column.offsets[-1].as_py() - column.offsets[0].as_py()
                rows += batch.num_rows
    return tokens, rows


def _rival(
    settings: PrepareBenchmark, way: str, corpus: Corpus, encoder: str = "auto"
) -> Callable[[Path], dict[str, Any]]:
    def run(folder: Path) -> dict[str, Any]:
        command = [
            sys.executable, str(RIVALS),
            "--way", way,
            "--corpus_dir", str(corpus.folder),
            "--tokenizer_dir", str(settings.tokenizer_dir),
            "--work_dir", str(folder),
            "--max_length", str(settings.max_length),
            "--encoder", encoder,
        ]  # fmt: skip
        # A cache of its own: `datasets` also keeps what it has read in the user's.
        measured = run_measured(command, {"HF_DATASETS_CACHE": str(folder / "cache")})
        made = json.loads(measured.output.splitlines()[-1])
        counts = (made["tokens_in"], made["tokens_out"], made["rows"])
        return _figures(settings, corpus, measured, counts, made["seconds"])

    return run


def _figures(
    settings: PrepareBenchmark,
    corpus: Corpus,
    measured: Measured,
    counts: tuple[int, int, int],
    seconds: float | None = None,
) -> dict[str, Any]:
    """Put together a line of the table; `counts` are tokens in, tokens out and rows."""
    tokens_in, tokens_out, rows = counts
    wall = seconds or measured.seconds
    return {
        "MB": round(corpus.num_bytes / 1e6, 3),
        "MB/s": round(corpus.num_bytes / 1e6 / wall, 3),
        "tokens/s": round(tokens_in / wall),
        "wall s": round(wall, 3),
        "CPU s": round(measured.processor_seconds, 3),
        "peak MB": round(measured.peak_bytes / 1e6),
        "processes": measured.peak_processes,
        "tokens in": tokens_in,
        "tokens lost": tokens_in - tokens_out,
        "fill": round(tokens_out / (rows * settings.max_length), 6) if rows else None,
        "rows": rows,
    }


def _first_use(settings: PrepareBenchmark, corpus: Corpus, work: Path) -> dict[str, Any]:
    """Use each encoder once on little, so that no measurement holds what is done once a user and tokenizer."""
    with _made(work / "first") as folder:
        part = sample(corpus, folder / "in", 0.3)
        return {way: _rival(settings, "naive", part, way)(folder / way)["wall s"] for way in ("reference", "auto")}


def _entry(way: Way) -> dict[str, Any]:
    best = min(way.runs, key=lambda run: run["wall s"])
    return {**best, "runs": [{name: run[name] for name in ("wall s", "CPU s", "peak MB")} for run in way.runs]}


def _show(ways: list[Way]) -> None:
    cli.say(f"{'':62s}" + "".join(f"{name:>14s}" for name in COLUMNS))
    for way in ways:
        entry = _entry(way)
        shown = ("-" if entry[name] is None else shape.format(entry[name]) for name, shape in COLUMNS.items())
        cli.say(f"{way.name:62s}" + "".join(f"{value:>14s}" for value in shown))


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """Give an empty folder that is removed at the end."""
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    cli.run(PrepareBenchmark, main)
