"""Is the ledger of a prepared corpus that of its text and of its Arrow files, counted by other means?

    python benchmarks/corpus_recount.py --data DIR [--corpus_dir DIR] [--tokenizer_dir DIR]

DIR holds ``llama2_tokenizer/``, ``pieces_zh_20k.jsonl`` and ``pretrain/``, the corpus unless another is named. The
command is run on the whole corpus, on it with a holdout and with categories taken twice and by half, on each file
alone, and on a folder of odd files, where what is no record is to be skipped. Read again by `independent_reader` and
encoded by SentencePiece alone, these must be equal: how often each token id occurs in the Arrow files; documents,
characters, bytes, tokens and refused lines of every file in the ledger; documents, characters and tokens of every
category; rows, tokens, learned tokens and fill of every bucket.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sentencepiece import SentencePieceProcessor

from benchmarks.independent_reader import KINDS
from benchmarks.machine import describe_machine
from benchmarks.odd_files import write_odd_files
from benchmarks.recount_checks import (
    Expected,
    Part,
    compare_buckets,
    compare_categories,
    compare_files,
    compare_ids,
    compare_refused,
    compare_totals,
    count_part,
    expect,
)
from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.init_tokenizer import Settings as ExpandSettings
from colossal_llama2.tokenizer.init_tokenizer import main as init_tokenizer

ROOT = Path(__file__).resolve().parents[1]
LEDGER_VERSION = 2


@dataclass(frozen=True)
class RecountSettings:
    """Prepare a corpus, and count its tokens by other means."""

    data: Path | None = None
    """Folder with llama2_tokenizer/, pieces_zh_20k.jsonl and pretrain/."""
    corpus_dir: Path | None = None
    """Folder of the corpus; unless given, pretrain/ of the data."""
    tokenizer_dir: Path | None = None
    """Folder with a tokenizer.model; unless given, that of the data expanded by its pieces."""
    max_length: int = 4096
    """Tokens a row can hold."""
    bins: int = 10
    """Buckets of the whole corpus; a file alone goes into one."""
    each_file_alone: bool = True
    """Also prepare each file of the corpus alone."""
    output: Path = ROOT / "benchmarks" / "results" / "corpus_recount.json"
    """File to write the result to."""


def main(settings: RecountSettings) -> int:
    """Prepare and recount; return 1 when anything differs."""
    corpus = settings.corpus_dir or (settings.data / "pretrain" if settings.data else None)
    if corpus is None or (settings.tokenizer_dir is None and settings.data is None):
        raise InputError("nothing to recount", remedy="pass --data, or --corpus_dir and --tokenizer_dir")
    files = sorted((path for path in corpus.rglob("*") if path.name.endswith(KINDS)), key=lambda path: path.parts)
    if not files:
        raise InputError("holds no file of a corpus", path=corpus, remedy="name a folder with --data or --corpus_dir")
    result: dict[str, Any] = {"machine": describe_machine(), "max_length": settings.max_length}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tokenizer_dir = settings.tokenizer_dir or _expand(settings.data or corpus, work / "tokenizer")
        processor = SentencePieceProcessor(model_file=str(tokenizer_dir / "tokenizer.model"))
        whose = "given" if settings.tokenizer_dir else "Llama-2's, expanded by the pieces of the data"
        result["tokenizer"] = {"which": whose, "pieces": processor.get_piece_size()}
        recount = Recount(settings, tokenizer_dir, processor, work)
        expected = {_name_in_ledger(path, corpus): expect(path, processor) for path in files}
        result["whole_corpus"] = recount.compare([corpus], expected, settings.bins)
        result["with_a_holdout"] = recount.compare([corpus], expected, settings.bins, {"--holdout": "1%"})
        names = sorted({name for entry in expected.values() for name in entry.per_category})
        if len(names) > 1:
            weights = {names[0]: 2.0, names[1]: 0.5}
            written = ",".join(f"{name}={weight:g}" for name, weight in weights.items())
            more = {"--category_weights": written}
            result["with_weights"] = recount.compare([corpus], expected, settings.bins, more, weights)
        odd = {_name_in_ledger(path, work / "odd"): expect(path, processor) for path in write_odd_files(work / "odd")}
        result["odd_files"] = recount.compare([work / "odd"], odd, 3, {"--bad_records": "skip"})
        result["odd_files"]["files"] = {
            name: {"documents": len(entry.found.texts), "refused_lines": len(entry.found.refused)}
            for name, entry in odd.items()
        }
        for path in files if settings.each_file_alone else []:
            name = path.relative_to(corpus).as_posix()
            result.setdefault("files", {})[name] = recount.compare(
                [path], {path.name: expected[f"{corpus.name}/{name}"]}, 1
            )
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    entries = [value for value in result.values() if isinstance(value, dict) and "equal" in value]
    entries += result.get("files", {}).values()
    for entry in entries:
        for problem in entry["differences"]:
            print(problem, file=sys.stderr)
    return 0 if all(entry["equal"] for entry in entries) else 1


class Recount:
    """Prepares, and holds what was written to what was expected."""

    def __init__(
        self, settings: RecountSettings, tokenizer_dir: Path, processor: SentencePieceProcessor, work: Path
    ) -> None:
        self._settings, self._tokenizer_dir, self._processor, self._work = settings, tokenizer_dir, processor, work
        self._runs = 0

    def compare(
        self,
        inputs: Sequence[Path],
        expected: Mapping[str, Expected],
        bins: int,
        more: Mapping[str, str] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Prepare once and compare everything; the result tells what differs.

        Args:
            inputs: what the command is given.
            expected: by the file's name in the ledger, what lies there.
            bins: buckets.
            more: further flags.
            weights: how often categories are taken, where not once.
        """
        self._runs += 1
        arrow = self._work / str(self._runs) / "arrow"
        self._prepare(inputs, arrow, bins, more or {})
        manifest = json.loads((arrow / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["version"] == LEDGER_VERSION, "the ledger is of the version that is recounted here"
        parts, holdout = self._count(arrow), self._count(arrow / "holdout")
        problems = [
            *compare_files(_read_lines(arrow / "files.jsonl"), expected),
            *compare_refused(_read_lines(arrow / "refused_records.jsonl"), expected),
            *compare_categories(manifest, expected),
            *compare_buckets(manifest["buckets"], parts),
            *compare_ids(manifest, expected, (parts, holdout), weights or {}),
            *compare_totals(manifest, expected, parts),
        ]
        if holdout:
            own = json.loads((arrow / "holdout" / "manifest.json").read_text(encoding="utf-8"))
            problems += compare_buckets(own["buckets"], holdout, ("rows", "tokens", "learned_tokens"))
        told = {name: manifest["totals"][name] for name in ("documents", "tokens", "tokens_in_rows", "rows", "fill")}
        sizes = [part.tokens for part in parts]
        result = {
            **told,
            "tokens_by_sentencepiece": int(sum(entry.lengths.sum() for entry in expected.values())),
            "tokens_in_arrow": sum(sizes),
            "tokens_in_holdout": sum(part.tokens for part in holdout),
            "learned_tokens_in_arrow": sum(part.learned for part in parts),
            "largest_bucket_over_smallest": round(max(sizes) / min(sizes), 4),
            "equal": not problems,
            "differences": problems,
        }
        shown = ", ".join(path.name for path in inputs) + "".join(f" {k} {v}" for k, v in (more or {}).items())
        cli.say(f"{shown}: {result['tokens_in_arrow']:,} tokens, {'equal' if not problems else 'DIFFERENT'}")
        return result

    def _count(self, folder: Path) -> list[Part]:
        files = sorted(folder.glob("part-*/*.arrow"))
        return [count_part(path, self._settings.max_length, self._processor) for path in files]

    def _prepare(self, inputs: Sequence[Path], arrow: Path, bins: int, more: Mapping[str, str]) -> None:
        """Run the command as a user would; all runs share a cache, as a user's would."""
        command = [
            sys.executable, str(ROOT / "tools" / "prepare_pretrain_dataset.py"),
            "--data_input_dirs", ",".join(map(str, inputs)),
            "--tokenizer_dir", str(self._tokenizer_dir),
            "--data_cache_dir", str(self._work / "cache"),
            "--data_jsonl_output_dir", "None",
            "--data_arrow_output_dir", str(arrow),
            "--max_length", str(self._settings.max_length),
            "--num_spliced_dataset_bins", str(bins),
            *(part for flag in more.items() for part in flag),
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _name_in_ledger(path: Path, folder: Path) -> str:
    return f"{folder.name}/{path.relative_to(folder).as_posix()}"


def _read_lines(path: Path) -> list[dict[str, Any]]:
    # Not splitlines(), which would also cut at line separators inside of strings.
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines if line]


def _expand(data: Path, target: Path) -> Path:
    init_tokenizer(ExpandSettings(data / "llama2_tokenizer", target, data / "pieces_zh_20k.jsonl"))
    return target


if __name__ == "__main__":
    cli.run(RecountSettings, main)
