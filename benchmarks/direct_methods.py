"""Do the direct methods learn what people prefer?

    python benchmarks/direct_methods.py [--pairs 1000] [--output FILE.json]

Answers are random words, some liked and some not; the answer with more liked words less disliked ones is the better
one, and how long it is was drawn apart from that. A tiny Llama with random weights is trained by `train.py --stage dpo`
and its relatives, one pair in ten held back. Afterwards each finished model is loaded by transformers alone, and the
held-back answers are run one at a time: the implicit reward is log(pi / reference) for DPO, IPO and KTO, the mean
log-probability of a token for SimPO and ORPO. GRPO starts from ORPO's model and is paid by the share of liked words
less that of disliked ones; its reward must rise. Exit code 1 when a bar is missed.

For each method also: wall and CPU seconds of training, imports included, on one CPU rank, with the reference's share.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.compared_words import DISLIKED, LIKED, prepare_compared_words
from benchmarks.machine import describe_machine
from benchmarks.tiny_inputs import make_tiny_inputs
from colossal_llama2 import cli
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings
from colossal_llama2.dataset.prepare_dataset import main as prepare

ROOT = Path(__file__).resolve().parents[1]
METHODS: dict[str, dict[str, object]] = {
    "dpo": {"stage": "dpo", "lr": 1e-3},
    "ipo": {"stage": "dpo", "dpo_loss": "ipo", "lr": 1e-3},
    "simpo": {"stage": "simpo", "lr": 1e-3},
    "orpo": {"stage": "orpo", "lr": 3e-3, "orpo_lambda": 1.0},
    "kto": {"stage": "kto", "lr": 1e-3},
}
OF_REFERENCE = ("dpo", "ipo", "kto")
# "good" and "bad" are said of an answer beside its rival: KTO sees many an answer called good here and bad there
BARS = {"dpo": 0.9, "ipo": 0.9, "simpo": 0.9, "orpo": 0.9, "kto": 0.8}
GRPO_FLAGS: dict[str, object] = {
    "stage": "grpo",
    "lr": 3e-3,
    "rollout_batch": 8,
    "group_size": 8,
    "max_new_tokens": 12,
    "micro_batch_size": 64,
    "generation_batch": 64,
    "grpo_minibatches": 2,
    "max_steps": 40,
}
REWARD_FUNCTION = """
LIKED, DISLIKED = {liked!r}, {disliked!r}

def worth(prompts, answers, records):
    found = [answer.split() for answer in answers]
    return [sum((word in LIKED) - (word in DISLIKED) for word in words) / max(len(words), 1) for words in found]
"""


@dataclass(frozen=True)
class DirectMethodsSettings:
    """Train tiny models on a preference whose truth is known."""

    pairs: int = 1000
    """Pairs, one in ten of them held back."""
    steps: int = 100
    """Optimizer steps of 16 pairs."""
    methods: str = ",".join(METHODS)
    """Which methods, comma-separated."""
    seed: int = 0
    """Decides the pairs and the order of the rows."""
    output: Path = ROOT / "benchmarks" / "results" / "direct_methods.json"
    """Where the result goes."""


def main(settings: DirectMethodsSettings) -> int:
    """Train with each method, score what was held back, write the result; return 1 when a bar is missed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        config: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "initializer_range": 0.05}
        model_dir, _ = make_tiny_inputs(work, 64, max_position_embeddings=128, **config)
        set_dir = prepare_compared_words(work, model_dir, settings.pairs, settings.seed)
        before = _log_probs(model_dir, set_dir / "holdout")
        results = {
            method: _measure(method, work, model_dir, set_dir, settings, before)
            for method in cli.comma_separated(settings.methods)
        }
        grpo = _measure_grpo(work, settings) if "orpo" in results else None
    passed = all(result["held_back_accuracy"] > BARS[method] for method, result in results.items())
    passed = passed and (grpo is None or grpo["reward_of_last_5"] > grpo["reward_of_first_5"] + 0.2)
    result = {
        "machine": describe_machine(),
        "settings": {"pairs": settings.pairs, "steps": settings.steps, "seed": settings.seed, "pairs_a_step": 16},
        "bars": BARS,
        "passed": passed,
        "accuracy_before": {
            "mean log-probability": _accuracy([[s / n for s, n in pair] for pair in before]),
            "held_back_pairs": len(before),
        },
        "methods": results,
        "grpo": grpo,
    }
    settings.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: found["held_back_accuracy"] for name, found in results.items()}, indent=1))
    return 0 if passed else 1


Said = list[list[tuple[float, int]]]
"""Log-probability and tokens of the better and the worse answer of each pair."""


def _measure(
    method: str, work: Path, model_dir: Path, set_dir: Path, settings: DirectMethodsSettings, before: Said
) -> dict[str, Any]:
    save_dir = work / method
    began, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    output = _train(method, save_dir, model_dir, set_dir, settings)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    after = _log_probs(save_dir / "modeling", set_dir / "holdout")
    if method in OF_REFERENCE:
        rewards = [[a - b for (a, _), (b, _) in zip(*both, strict=True)] for both in zip(after, before, strict=True)]
    else:
        rewards = [[total / tokens for total, tokens in pair] for pair in after]
    lines = (save_dir / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    return {
        "flags": METHODS[method],
        "held_back_accuracy": _accuracy(rewards),
        "logged": [
            {name: line[name] for name in ("step", *(n for n in line if n.startswith("eval_")))}
            for line in logged
            if "eval_loss" in line
        ],
        "seconds": round(time.perf_counter() - began, 1),
        "seconds_of_steps": round(sum(line["seconds"] for line in logged), 1),
        "seconds_of_reference": [float(found) for found in re.findall(r"computed in ([\d.]+) s", output)],
        "cpu_seconds": round(spent.ru_utime + spent.ru_stime - cpu.ru_utime - cpu.ru_stime, 1),
    }


def _measure_grpo(work: Path, settings: DirectMethodsSettings) -> dict[str, Any]:
    prepare(
        PrepareSetSettings(
            type="prompt",
            data_input_dirs=str(work / "pairs.jsonl"),
            tokenizer_dir=work / "model",
            data_arrow_output_dir=work / "prompts",
            chat_template="llama2",
            max_length=128,
            num_workers=1,
        )
    )
    (work / "paid.py").write_text(REWARD_FUNCTION.format(liked=LIKED, disliked=DISLIKED), encoding="utf-8")
    cpu, save_dir = resource.getrusage(resource.RUSAGE_CHILDREN), work / "grpo"
    flags = {
        "pretrained": work / "orpo" / "modeling",
        "dataset": work / "prompts",
        "save_dir": save_dir,
        "save_interval": 0,
        "mixed_precision": "fp32",
        "plugin": "ddp",
        "reward_function": f"{work / 'paid.py'}:worth",
        "seed": settings.seed,
        **GRPO_FLAGS,
    }
    _run_train(flags)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = (save_dir / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    rewards = [line["reward"] for line in logged]
    return {
        "flags": GRPO_FLAGS,
        "reward_of_first_5": sum(rewards[:5]) / 5,
        "reward_of_last_5": sum(rewards[-5:]) / 5,
        "rewards": [round(reward, 3) for reward in rewards],
        "kl": [round(line["kl"], 3) for line in logged],
        "cpu_seconds": round(spent.ru_utime + spent.ru_stime - cpu.ru_utime - cpu.ru_stime, 1),
    }


def _accuracy(rewards: list[list[float]]) -> float:
    return sum(better > worse for better, worse in rewards) / len(rewards)


def _train(method: str, save_dir: Path, model_dir: Path, set_dir: Path, settings: DirectMethodsSettings) -> str:
    flags: dict[str, object] = {
        "pretrained": model_dir,
        "dataset": set_dir,
        "eval_dataset": set_dir / "holdout",
        "eval_interval": max(settings.steps // 4, 1),
        "save_dir": save_dir,
        "save_interval": 0,
        "max_length": 1024,
        "micro_batch_size": 16,
        "max_steps": settings.steps,
        "num_epochs": 100,
        "mixed_precision": "fp32",
        "seed": settings.seed,
        **METHODS[method],
    }
    return _run_train(flags)


def _run_train(flags: dict[str, object]) -> str:
    command = [sys.executable, str(ROOT / "train.py"), *(str(p) for n, v in flags.items() for p in (f"--{n}", v))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="", flush=True)
    done.check_returncode()
    return done.stdout


@torch.no_grad()
def _log_probs(model_dir: Path, holdout_dir: Path) -> Said:
    """Run every held-back answer on its own, through transformers' own attention."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    corpus = PreparedCorpus.open([holdout_dir], types=("preference",))
    pairs: Said = []
    for number in range(corpus.num_rows):
        row, begin = corpus.row(number), 0
        said: dict[int, tuple[float, int]] = {}
        assert row.ranks is not None
        for rank, length in zip(row.ranks.tolist(), row.seq_lens.tolist(), strict=True):
            ids = torch.tensor(row.input_ids[begin : begin + length].astype(int))
            learned = [t for t in range(1, length) if row.labels[begin + t] != -100]
            scores = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
            said[rank] = (float(sum(scores[t - 1, ids[t]] for t in learned)), len(learned))
            begin += length
        pairs.append([said[0], said[1]])
    return pairs


if __name__ == "__main__":
    cli.run(DirectMethodsSettings, main)
