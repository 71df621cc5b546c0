"""Do weighted and distilled rows start better than means? Measured on small models really trained by the project.

    python benchmarks/compare_inits.py --data DIR

For each seed: a small Llama is trained on English and, through bytes, on some Chinese; its vocabulary is expanded by
Chinese pieces; tools/compare_inits.py starts their rows in every way and scores held-out text, before any training and
after the same short one. A second model per seed, with embedding and head tied, shows whether the same holds there.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from benchmarks.small_base import split_texts

WAYS = ("random", "mean", "weighted", "mean/distilled", "distilled/mean", "distilled")
PUNCTUATION = "，。！？；：、“”《》（）"


@dataclass(frozen=True)
class Settings:
    """Train small base models, expand them, and compare ways to start the new rows."""

    data: Path
    """Folder with pieces_zh_20k.jsonl and pretrain/."""

    base_steps: int = 700
    """Steps of 4,096 tokens that a base model is trained for."""

    num_pieces: int = 4000
    """How many pieces of the list are added, its first ones of Chinese characters and punctuation."""

    distill_steps: int = 400
    """Steps of distillation."""

    train_steps: int = 60
    """Steps of the short training behind it."""

    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds, each of a base model of its own, of its rows and of its training."""

    work_dir: Path | None = None
    """Folder to keep everything in and to go on from (default: nothing is kept)."""

    output: Path = Path(__file__).resolve().parent / "results" / "compare_inits.json"
    """File to write the result to; the plot lies beside it."""


def main(settings: Settings) -> None:
    """Make the models, compare on each, save the figures of all."""
    with tempfile.TemporaryDirectory() as name:
        work = settings.work_dir or Path(name)
        texts = split_texts(settings.data, work / "texts")
        _write_pieces(settings, work / "pieces.jsonl")
        measured: dict[str, list[Any]] = {}
        for tied in (False, True):
            found = [_compare(settings, texts, work, seed, tied) for seed in settings.seeds]
            measured["tied" if tied else "untied"] = [one for lines in found for one in lines]
    means = {kind: _means(lines) for kind, lines in measured.items()}
    result = {"machine": describe_machine(), "settings": _settings(settings), "means": means, "measured": measured}
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
