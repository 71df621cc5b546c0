"""Do weighted and distilled rows start better than means? Measured on a small model really trained by the project.

    python benchmarks/compare_inits.py --data DIR

A small Llama is trained on English and, through bytes, on some Chinese; its vocabulary is expanded by Chinese pieces;
tools/compare_inits.py starts their rows in every way, seed by seed, and scores held-out text before any training and
after the same short one. With --tied embedding and output head of the model are one matrix.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from benchmarks.small_base import make_base, run, split_texts
from colossal_llama2 import cli
from colossal_llama2.jsonl import read_jsonl
from colossal_llama2.report.compare_inits import PLOT, RESULTS

RESULTS_DIR = Path(__file__).resolve().parent / "results"
WAYS = ("random", "mean", "weighted", "distilled/mean", "mean/distilled", "distilled")
TIED_WAYS = ("random", "mean", "weighted", "distilled")
PUNCTUATION = "，。！？；：、“”《》（）"


@dataclass(frozen=True)
class Settings:
    """Train a small base model, expand it, and compare ways to start the new rows."""

    data: Path
    """Folder with pieces_zh_20k.jsonl and pretrain/."""
    tied: bool = False
    """Take a model whose embedding and output head are one matrix."""
    base_steps: int = 700
    """Steps of 4,096 tokens that the base model is trained for."""
    num_pieces: int = 4000
    """Pieces to add: the first ones of the list that are Chinese characters and punctuation alone."""
    held_out_bytes: int = 32_000
    """Text of each language to score, in bytes."""
    distill_steps: int = 150
    """Steps of distillation."""
    train_steps: int = 20
    """Steps of the short training behind it."""
    train_rows: int = 4
    """Rows of 512 tokens a step of it."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of rows at random or distilled, and of the order of the training text."""
    work_dir: Path | None = None
    """Folder to keep everything in, and to take a base model from that an earlier run left (default: none is kept)."""
    output: Path | None = None
    """File to write the result to (default: results/compare_inits.json here); the plot lies beside it."""


def main(settings: Settings) -> None:
    """Make the model, compare, keep the figures and the plot."""
    kind = "tied" if settings.tied else "untied"
    name = "compare_inits_tied.json" if settings.tied else "compare_inits.json"
    output = settings.output or RESULTS_DIR / name
    with tempfile.TemporaryDirectory() as temporary:
        work = settings.work_dir or Path(temporary)
        texts = split_texts(settings.data, work / "texts", settings.held_out_bytes)
        base = make_base(texts, work / "model", settings.base_steps, settings.tied)
        _expand(settings, base, work)
        run(
            "tools/compare_inits.py",
            *("--source_model_and_tokenizer_path", base, "--target_tokenizer_path", work / "tokenizer"),
            *("--data", *texts.held_out.values(), "--output_dir", work / f"compared-{kind}", "--overwrite"),
            *("--inits", *(TIED_WAYS if settings.tied else WAYS), "--seeds", *settings.seeds),
            *("--distill_corpus", texts.adaptation["chinese"], "--distill_steps", settings.distill_steps),
            *("--train_data", *texts.adaptation.values(), "--train_steps", settings.train_steps),
            *("--train_rows", settings.train_rows),
        )
        measured = json.loads((work / f"compared-{kind}" / RESULTS).read_text(encoding="utf-8"))["measured"]
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(work / f"compared-{kind}" / PLOT, output.with_suffix(".png"))
    asked = {key: value for key, value in asdict(settings).items() if key not in ("data", "work_dir", "output")}
    result = {"machine": describe_machine(), "settings": asked, "means": _means(measured), "measured": measured}
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    cli.say(f"written to {output}")


def _expand(settings: Settings, base: Path, work: Path) -> None:
    listed = (str(record["piece"]) for _, record in read_jsonl(settings.data / "pieces_zh_20k.jsonl"))
    pieces = [piece for piece in listed if all("一" <= c <= "鿿" or c in PUNCTUATION for c in piece)]
    lines = (json.dumps({"piece": piece}, ensure_ascii=False) + "\n" for piece in pieces[: settings.num_pieces])
    (work / "pieces.jsonl").write_text("".join(lines), encoding="utf-8")
    run(
        "tools/init_tokenizer.py",
        *("--source_tokenizer_dir", base, "--target_tokenizer_dir", work / "tokenizer", "--overwrite"),
        *("--expand_tokens_file", work / "pieces.jsonl"),
    )


def _means(measured: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Average bits per byte over the seeds: by way and steps of training, then by file."""
    values: dict[str, dict[str, list[float]]] = {}
    for one in measured:
        way = values.setdefault(f"{one['way'] or 'base'}, {one['steps']} steps", {})
        for name, score in one["scores"].items():
            way.setdefault(name, []).append(score["bits_per_byte"])
    return {
        way: {name: round(sum(some) / len(some), 4) for name, some in files.items()} for way, files in values.items()
    }


if __name__ == "__main__":
    cli.run(Settings, main)
