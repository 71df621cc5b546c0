"""How fast the corpus is read, and in how much memory.

    python benchmarks/read_inputs.py [--megabytes 60] [--output FILE.json]

Text is made here, of Chinese and English words in the mixture of a real corpus; documents of 2 kB and of 200 bytes are
written as jsonl, in every other format, and as one line of many megabytes. Beside each other, in alternation and in CPU
seconds of one process: reading as the preparation does, orjson alone on the same lines, and a line at a time through
the exact parser, which is how all lines were read before. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.dataset.deduplication import find_duplicates, text_hashes
from colossal_llama2.dataset.inputs import find_inputs, split_into_shards
from colossal_llama2.dataset.reading import Reading, RecordBatch, read_segment, segment_digest
from colossal_llama2.dataset.records import parse_pretraining_record
from colossal_llama2.jsonl import iterate_lines

ROOT = Path(__file__).resolve().parents[1]
_HAN = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用"
_WORDS = "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they"


@dataclass(frozen=True)
class ReadSettings:
    """Measure the readers of the corpus."""

    megabytes: int = 60
    """Size of each file."""
    giant_megabytes: int = 1000
    """Size of the single line."""
    num_small_files: int = 100_000
    """Small files whose listing is measured."""
    rounds: int = 5
    """Times that each measurement is repeated, in alternation; the best counts."""
    output: Path = ROOT / "benchmarks" / "results" / "read_inputs.json"
    """Where the figures are written."""
    measure_file: str = ""
    """Only read this file, and print this process's peak memory: how the benchmark calls itself."""


def main(settings: ReadSettings) -> None:
    """Measure, print and write."""
    if settings.measure_file:
        print(json.dumps(_read_alone(Path(settings.measure_file))))
        return
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "load average before and after": [os.getloadavg()[0]],
        "settings": {"megabytes": settings.megabytes, "rounds": settings.rounds},
    }
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for size in (2000, 200):
            for language in ("chinese", "english"):
                name = f"{language}, documents of {size} bytes"
                result[name] = _measure_lines(work, settings, language, size)
                print(name, result[name])
        result["formats"] = _measure_formats(work, settings)
        print("formats", result["formats"])
        result["deduplication"] = _measure_deduplication(settings)
        print("deduplication", result["deduplication"])
        result["one line"] = _measure_giant(work, settings)
        print("one line", result["one line"])
        result["small files"] = _measure_listing(work, settings)
        print("small files", result["small files"])
    result["load average before and after"].append(os.getloadavg()[0])
    settings.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _documents(language: str, num_bytes: int, total: int) -> Iterator[dict[str, str]]:
    """Yield records of about so many bytes each, punctuated and broken into lines; the same on every call."""
    draw = random.Random(num_bytes)
    while total > 0:
        if language == "chinese":
            text = "".join(
                "".join(draw.choices(_HAN, k=19)) + draw.choice("，。\n") for _ in range(-(-num_bytes // 60))
            )
        else:
            words = draw.choices(_WORDS.split(), k=num_bytes // 4)
            text = " ".join(word + draw.choice(["", "", "", "", '"', ",\n"]) for word in words)
        text = text.encode()[: max(20, num_bytes - 50)].decode("utf-8", "ignore")
        yield {"source": "", "target": text, "category": language}
        total -= num_bytes


def _lines(language: str, num_bytes: int, total: int) -> bytes:
    return b"".join(
        json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in _documents(language, num_bytes, total)
    )


def _read(path: Path) -> tuple[int, int]:
    """Return (documents, characters) of a file."""
    documents = characters = 0
    for shard in split_into_shards(find_inputs([str(path)])[0]):
        for segment in shard.segments:
            for batch in read_segment(segment, Reading(), []):
                if isinstance(batch, RecordBatch):
                    documents += len(batch.texts)
                    characters += sum(map(len, batch.texts))
                else:
                    documents += 1
                    characters += sum(map(len, batch.source_chunks())) + sum(map(len, batch.target_chunks()))
    return documents, characters


def _read_line_by_line(path: Path) -> tuple[int, int]:
    """The same, each line read by itself and parsed exactly."""
    documents = characters = 0
    with path.open("rb") as file:
        for number, raw in iterate_lines(file):
            record = parse_pretraining_record(raw, path, number)
            documents += 1
            characters += len(record.source) + len(record.target)
    return documents, characters


def _best(rounds: int, *functions: Callable[[], Any]) -> list[float]:
    """Return the best CPU seconds of each function, called in turn."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for own, function in zip(seconds, functions, strict=True):
            began = time.process_time()
            function()
            own.append(time.process_time() - began)
    return [min(own) for own in seconds]


def _measure_lines(work: Path, settings: ReadSettings, language: str, num_bytes: int) -> dict[str, Any]:
    path = work / "lines.jsonl"
    path.write_bytes(_lines(language, num_bytes, settings.megabytes * 1_000_000))
    lines = path.read_bytes().split(b"\n")[:-1]
    assert _read(path) == _read_line_by_line(path)
    [segment] = [shard.segments[0] for shard in split_into_shards(find_inputs([str(path)])[0], 1 << 40)]
    ours, bare, old, digest = _best(
        settings.rounds,
        lambda: _read(path),
        lambda: [orjson.loads(line) for line in lines],
        lambda: _read_line_by_line(path),
        lambda: segment_digest(segment),
    )
    megabytes = path.stat().st_size / 1e6
    return {
        "documents": len(lines),
        "MB": round(megabytes, 1),
        "MB per CPU second": round(megabytes / ours, 1),
        "MB per CPU second, orjson alone": round(megabytes / bare, 1),
        "MB per CPU second, a line at a time": round(megabytes / old, 1),
        "MB per CPU second, sha256 of the segment": round(megabytes / digest, 1),
        "microseconds a record beyond orjson": round((ours - bare) / len(lines) * 1e6, 2),
        "peak memory, MB": _read_in_own_process(path)["peak memory, MB"],
    }


def _measure_formats(work: Path, settings: ReadSettings) -> dict[str, Any]:
    """Read one corpus of 2 kB documents in every format; MB are those of the plain jsonl."""
    records = list(_documents("chinese", 2000, settings.megabytes * 1_000_000))
    plain = work / "corpus.jsonl"
    plain.write_bytes(b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records))
    (work / "corpus.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes(), 6))
    (work / "corpus.jsonl.zst").write_bytes(pa.Codec("zstd").compress(plain.read_bytes()).to_pybytes())
    table = pa.Table.from_pylist(records)
    pq.write_table(table, work / "corpus.parquet", row_group_size=2000)
    with pa.ipc.new_stream(str(work / "corpus.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    paths = [work / f"corpus.{kind}" for kind in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow")]
    counts = {_read(path) for path in paths}
    assert len(counts) == 1, counts
    seconds = _best(settings.rounds, *(lambda path=path: _read(path) for path in paths))
    megabytes = plain.stat().st_size / 1e6
    return {
        path.name.partition(".")[2]: {"MB per CPU second": round(megabytes / own, 1)}
        for path, own in zip(paths, seconds, strict=True)
    }


def _measure_deduplication(settings: ReadSettings) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for language in ("chinese", "english"):
        texts = [record["target"] for record in _documents(language, 2000, 20_000_000)]
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        exact, minhash = _best(
            settings.rounds, partial(text_hashes, texts, "exact"), partial(text_hashes, texts, "minhash")
        )
        result[f"{language}: MB per CPU second"] = {
            "exact": round(megabytes / exact, 1),
            "minhash": round(megabytes / minhash, 1),
        }
    draw = np.random.default_rng(0)
    documents = 1_000_000
    rows = draw.integers(0, 1 << 32, (documents, 128), dtype=np.uint32)
    rows[documents // 2 :] = rows[: documents // 2]
    exact_rows = rows[:, :4].copy().view(np.uint64)
    [seconds] = _best(1, lambda: find_duplicates([rows], "minhash", 0.8))
    [exact_seconds] = _best(1, lambda: find_duplicates([exact_rows], "exact", 0.8))
    result["CPU seconds to compare a million documents"] = {"exact": exact_seconds, "minhash": seconds}
    return result


def _measure_giant(work: Path, settings: ReadSettings) -> dict[str, Any]:
    part = "".join(record["target"] for record in _documents("chinese", 2000, 4_000_000))
    written = json.dumps(part, ensure_ascii=False)[1:-1].encode()
    path = work / "giant.jsonl"
    with path.open("wb") as file:
        file.write(b'{"target": "first"}\n{"target": "')
        for _ in range(settings.giant_megabytes * 1_000_000 // len(written)):
            file.write(written)
        file.write(b'"}\n{"target": "last"}\n')
    return {"MB": round(path.stat().st_size / 1e6), **_read_in_own_process(path)}


def _read_in_own_process(path: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure_file", str(path)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return found


def _read_alone(path: Path) -> dict[str, Any]:
    before = _peak_megabytes()
    began = time.process_time()
    documents, characters = _read(path)
    return {
        "documents": documents,
        "characters": characters,
        "CPU seconds": round(time.process_time() - began, 2),
        "shards": len(split_into_shards(find_inputs([str(path)])[0])),
        "peak memory, MB": _peak_megabytes(),
        "of which imports, MB": before,
    }


def _peak_megabytes() -> int:
    """Return this process's peak memory; what `getrusage` says is that of its parent, if that was larger."""
    status = Path("/proc/self/status").read_text()
    [peak] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return round(int(peak) / 1000)


def _measure_listing(work: Path, settings: ReadSettings) -> dict[str, Any]:
    import tracemalloc

    content = b'{"target": "a small file of a large corpus"}\n'
    for folder in range(-(-settings.num_small_files // 1000)):
        (work / "small" / f"{folder:04d}").mkdir(parents=True)
        for number in range(1000):
            (work / "small" / f"{folder:04d}" / f"document-{number:04d}.jsonl").write_bytes(content)
    tracemalloc.start()
    files, _ = find_inputs([str(work / "small")])
    shards = split_into_shards(files)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    listing, reading = _best(
        1, lambda: split_into_shards(find_inputs([str(work / "small")])[0]), lambda: _read(work / "small")
    )
    return {
        "files": len(files),
        "shards": len(shards),
        "bytes held a file": round(held / len(files)),
        "CPU microseconds a file, listing": round(listing / len(files) * 1e6, 1),
        "CPU microseconds a file, listing and reading": round(reading / len(files) * 1e6, 1),
    }


if __name__ == "__main__":
    cli.run(ReadSettings, main)
