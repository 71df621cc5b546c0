"""Does a reward model learn what people prefer, and not how long an answer is?

    python benchmarks/reward_model.py [--pairs 1500] [--output FILE.json]

Answers are random words among which some are liked and some are not; the answer with more liked words is the better
one. How long an answer is was drawn apart from that, so a model that has learned the truth does not see it. A tenth of
the pairs is labelled the wrong way round, so nobody is right about all that are held back. A tiny Llama with random
weights is trained by `train.py --stage reward`; `prepare_dataset` holds one pair in ten back. Exit code 1 when accuracy
or correlation miss their bars.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.compared_words import prepare_compared_words
from benchmarks.machine import describe_machine
from benchmarks.tiny_inputs import make_tiny_inputs
from colossal_llama2 import cli
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.ranked_batches import collate_ranked
from colossal_llama2.model.scalar_head import load_scorer, scores
from colossal_llama2.train.stage import model_inputs

ROOT = Path(__file__).resolve().parents[1]
LEAST_ACCURACY, MOST_CORRELATION = 0.65, 0.2


@dataclass(frozen=True)
class RewardModelSettings:
    """Train a tiny reward model on a preference whose truth is known."""

    pairs: int = 1500
    """Pairs, one in ten of them held back."""
    mistaken: float = 0.1
    """Share of the pairs, held back or not, that are labelled the wrong way round, as people do."""
    steps: int = 150
    """Optimizer steps of 16 pairs."""
    seed: int = 0
    """Decides the pairs and the model's first weights."""
    output: Path = ROOT / "benchmarks" / "results" / "reward_model.json"
    """Where the result goes."""


def main(settings: RewardModelSettings) -> int:
    """Train, score what was held back, write the result; return 1 when a bar is missed."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        config: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "initializer_range": 0.05}
        model_dir, _ = make_tiny_inputs(work, 64, max_position_embeddings=128, **config)
        set_dir = prepare_compared_words(work, model_dir, settings.pairs, settings.seed, settings.mistaken)
        began = time.perf_counter()
        metrics = _train(work, model_dir, set_dir, settings)
        seconds = time.perf_counter() - began
        trained = _held_back(load_scorer(work / "out" / "modeling", "fp32"), set_dir / "holdout")
        untrained = _held_back(load_scorer(model_dir, "fp32", seed=settings.seed), set_dir / "holdout")
    passed = trained["accuracy"] >= LEAST_ACCURACY and abs(trained["correlation_with_length"]) <= MOST_CORRELATION
    result = {
        "machine": describe_machine(),
        "settings": {name: getattr(settings, name) for name in ("pairs", "mistaken", "steps", "seed")},
        "bars": {"accuracy": LEAST_ACCURACY, "correlation_with_length": MOST_CORRELATION},
        "passed": passed,
        "held_back": trained,
        "held_back_before_training": untrained,
        "logged_at_the_end": {name: value for name, value in metrics[-1].items() if name.startswith("eval_")},
        "training_seconds": round(seconds, 1),
    }
    settings.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["held_back"], indent=1))
    return 0 if passed else 1


def _train(work: Path, model_dir: Path, set_dir: Path, settings: RewardModelSettings) -> list[dict[str, Any]]:
    flags = {
        "stage": "reward",
        "pretrained": model_dir,
        "dataset": set_dir,
        "eval_dataset": set_dir / "holdout",
        "eval_interval": 50,
        "save_dir": work / "out",
        "save_interval": 0,
        "max_length": 1024,
        "micro_batch_size": 16,
        "max_steps": settings.steps,
        "num_epochs": 100,
        "lr": 3e-3,
        "mixed_precision": "fp32",
        "seed": settings.seed,
    }
    command = [sys.executable, str(ROOT / "train.py"), *(str(p) for n, v in flags.items() for p in (f"--{n}", v))]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    lines = (work / "out" / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@torch.no_grad()
def _held_back(model: Any, holdout_dir: Path) -> dict[str, float]:
    """Score every pair that was held back, one at a time."""
    model.eval()
    corpus = PreparedCorpus.open([holdout_dir], types=("preference",))
    margins, longer, scored, lengths = [], [], [], []
    for number in range(corpus.num_rows):
        batch = collate_ranked([corpus.row(number)])
        found = scores(model(**model_inputs(batch)).values, batch.document_ends).tolist()
        size = batch.answer_lengths.tolist()
        best, worst = (batch.ranks.tolist().index(rank) for rank in (0, 1))
        margins.append(found[best] - found[worst])
        longer.append(size[best] - size[worst])
        scored += found
        lengths += size
    right, difference = np.array(margins) > 0, np.array(longer)
    return {
        "pairs": len(margins),
        "accuracy": float(right.mean()),
        "accuracy_where_the_better_is_longer": float(right[difference > 0].mean()),
        "accuracy_where_the_better_is_shorter": float(right[difference < 0].mean()),
        "correlation_with_length": float(np.corrcoef(scored, lengths)[0, 1]),
        "share_of_pairs_whose_better_is_longer": float((difference > 0).mean()),
    }


if __name__ == "__main__":
    cli.run(RewardModelSettings, main)
