"""Are the tokens that come out of a prepared corpus those that SentencePiece makes of its text, file by file?

    python benchmarks/corpus_recount.py --data DIR [--tokenizer_dir DIR]

DIR holds ``llama2_tokenizer/``, ``pieces_zh_20k.jsonl`` and ``pretrain/``, jsonl of source, target, category. The
command is run three times on all files, timed from its start to its end with nothing in its cache, and once on each
file alone. Compared is how often each token id occurs: in the Arrow files, and in what SentencePiece alone makes of
source and target, with a beginning-of-sequence and an end-of-sequence token for each document. Where other work shares
the machine, read the processor seconds.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sentencepiece import SentencePieceProcessor

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.init_tokenizer import Settings as ExpandSettings
from colossal_llama2.tokenizer.init_tokenizer import main as init_tokenizer

ROOT = Path(__file__).resolve().parents[1]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RecountSettings:
    """Prepare a corpus, and count its tokens by other means."""

    data: Path
    """Folder with llama2_tokenizer/, pieces_zh_20k.jsonl and pretrain/."""
    tokenizer_dir: Path | None = None
    """Folder with a tokenizer.model; unless given, that of the data expanded by its pieces."""
    max_length: int = 4096
    """Tokens a row can hold."""
    bins: int = 10
    """Buckets of the whole corpus; a file alone goes into one."""
    output: Path = ROOT / "benchmarks" / "results" / "corpus_recount.json"
    """File to write the result to."""


def main(settings: RecountSettings) -> int:
    """Prepare and recount; return 1 when a token is missing, added or another."""
    files = sorted((settings.data / "pretrain").rglob("*.jsonl"))
    if not files:
        raise InputError("holds no pretrain/**/*.jsonl", path=settings.data, remedy="name the folder of the data")
    result: dict[str, Any] = {"machine": describe_machine(), "max_length": settings.max_length, "files": {}}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tokenizer_dir = settings.tokenizer_dir or _expand(settings.data, work / "tokenizer")
        processor = SentencePieceProcessor(model_file=str(tokenizer_dir / "tokenizer.model"))
        expected = {path: _count_text(path, processor) for path in files}
        runs = [
            _prepare(files, tokenizer_dir, work / name, settings.max_length, settings.bins)
            for name in ("all", "again", "once_more")
        ]
        whole = _compare(sum(expected.values()), _count_arrow(work / "all", processor))
        ledger = _of_ledger(work / "all")
        megabytes = ledger["ledger_text_bytes"] / 1e6
        result["whole_corpus"] = {
            **whole,
            **ledger,
            "seconds": [round(seconds, 2) for seconds, _ in runs],
            "processor_seconds": [round(seconds, 2) for _, seconds in runs],
            "megabytes_of_text_per_second_best": round(megabytes / min(runs)[0], 2),
            "tokens_per_second_best": round(whole["tokens_by_sentencepiece"] / min(runs)[0]),
        }
        for number, path in enumerate(files):
            _prepare([path], tokenizer_dir, work / str(number), settings.max_length, bins=1)
            name = path.relative_to(settings.data / "pretrain").as_posix()
            result["files"][name] = _compare(expected[path], _count_arrow(work / str(number), processor))
            print(name, result["files"][name], flush=True)
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result["whole_corpus"], indent=1))
    return 0 if all(entry["equal"] for entry in (result["whole_corpus"], *result["files"].values())) else 1


def _expand(data: Path, target: Path) -> Path:
    init_tokenizer(ExpandSettings(data / "llama2_tokenizer", target, data / "pieces_zh_20k.jsonl"))
    return target


def _prepare(files: Sequence[Path], tokenizer_dir: Path, work: Path, max_length: int, bins: int) -> tuple[float, float]:
    """Run the command as a user would; return its seconds and those of processors."""
    command = [
        sys.executable, str(ROOT / "tools" / "prepare_pretrain_dataset.py"),
        "--data_input_dirs", ",".join(map(str, files)),
        "--tokenizer_dir", str(tokenizer_dir),
        "--data_cache_dir", str(work / "cache"),
        "--data_jsonl_output_dir", str(work / "jsonl"),
        "--data_arrow_output_dir", str(work / "arrow"),
        "--max_length", str(max_length),
        "--num_spliced_dataset_bins", str(bins),
    ]  # fmt: skip
    before, started = _processor_seconds(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started, _processor_seconds() - before


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _count_text(path: Path, processor: SentencePieceProcessor) -> Counts:
    """Count the ids of a file's documents with nothing of ours in between."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    encoded = processor.encode([record["source"] + record["target"] for record in records], out_type="numpy")
    counts = np.bincount(np.concatenate(encoded), minlength=processor.get_piece_size())
    counts[[processor.bos_id(), processor.eos_id()]] += len(records)
    return counts


def _count_arrow(work: Path, processor: SentencePieceProcessor) -> Counts:
    """Count the ids in the Arrow files, and hold the rows to their pieces."""
    counts = np.zeros(processor.get_piece_size(), dtype=np.int64)
    for path in sorted((work / "arrow").glob("part-*/*.arrow")):
        with pa.memory_map(str(path)) as source:
            for batch in pa.ipc.open_stream(source):
                ids, labels, seq_lens = (batch.column(name).values.to_numpy() for name in batch.schema.names)
                assert len(ids) == len(labels) == seq_lens.sum()
                assert (labels[labels != -100] == ids[labels != -100]).all()
                counts += np.bincount(ids, minlength=len(counts))
    return counts


def _compare(expected: Any, found: Counts) -> dict[str, Any]:
    return {
        "tokens_by_sentencepiece": int(expected.sum()),
        "tokens_in_arrow": int(found.sum()),
        "ids_that_differ_in_number": int((expected != found).sum()),
        "equal": bool((expected == found).all()),
    }


def _of_ledger(work: Path) -> dict[str, Any]:
    manifest = json.loads((work / "arrow" / "manifest.json").read_text(encoding="utf-8"))
    sizes = [bucket["tokens"] for bucket in manifest["buckets"]]
    names = ("documents", "text_bytes", "tokens", "learned_tokens", "rows", "documents_cut", "fill")
    return {
        **{f"ledger_{name}": manifest["totals"][name] for name in names},
        "largest_bucket_over_smallest": round(max(sizes) / min(sizes), 4),
    }


if __name__ == "__main__":
    cli.run(RecountSettings, main)
