"""Every plugin on the GPUs that are here: start, train, resume, at the size of a model of a billion parameters.

    python benchmarks/gpu_plugins.py [--nproc 1] [--output FILE.json]

A random Llama (1.2 billion parameters unless told otherwise) and a corpus of random words. Each plugin trains some
steps in bf16, saving in the middle, and is started again from there: losses and gradient norms of the second half must
be those of the first run. Written down: tokens per second, model FLOP utilisation, peak memory of the first rank,
seconds. On a machine without a GPU it runs on the CPU: pass sizes that fit one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from benchmarks.tiny_inputs import make_tiny_inputs
from colossal_llama2 import cli

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ("zero2", "zero2_cpu", "gemini", "gemini_auto", "3d", "ddp")


@dataclass(frozen=True)
class GpuSettings:
    """Train with every plugin on this machine's GPUs."""

    output: Path = ROOT / "benchmarks" / "results" / "gpu_plugins.json"
    """Where the figures are written."""
    nproc: int = 1
    """GPUs to use."""
    plugins: tuple[str, ...] = PLUGINS
    """Plugins to try."""
    hidden_size: int = 2048
    """Width of the model."""
    num_layers: int = 20
    """Its layers."""
    rows: int = 4
    """Rows of 2048 tokens a GPU computes at a time."""
    steps: int = 12
    """Steps a run; a checkpoint is saved after half of them."""
    extra_flags: tuple[str, ...] = ("--use_grad_checkpoint", "--use_flash_attn")
    """More flags for train.py."""


def main(settings: GpuSettings) -> int:
    """Run; exit 1 when a plugin failed or did not resume."""
    result: dict[str, Any] = {"machine": describe_machine(), "settings": cli.as_yaml(settings), "plugins": {}}
    with tempfile.TemporaryDirectory() as temporary:
        model_dir, corpus_dir = _inputs(Path(temporary), settings)
        common = ["--pretrained", str(model_dir), "--dataset", str(corpus_dir), "--mixed_precision", "bf16"]
        common += ["--micro_batch_size", str(settings.rows), "--max_steps", str(settings.steps), "--lr", "1e-4"]
        common += ["--num_epochs", "1000", "--max_length", "2048", "--log_interval", "1", *settings.extra_flags]
        for plugin in settings.plugins:
            result["plugins"][plugin] = _try(settings, Path(temporary) / plugin, [*common, "--plugin", plugin])
            print(plugin, json.dumps(result["plugins"][plugin]), flush=True)
            settings.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(entry.get("resumed") for entry in result["plugins"].values()) else 1


def _try(settings: GpuSettings, folder: Path, flags: list[str]) -> dict[str, Any]:
    """Train, train again from the middle, and compare; of a failure keep the end of what it said."""
    middle = settings.steps // 2
    began = time.perf_counter()
    whole = _train(settings, [*flags, "--save_dir", str(folder / "whole"), "--save_interval", str(middle)])
    seconds = time.perf_counter() - began
    if whole.returncode:
        return {"resumed": False, "failed": whole.stdout[-2000:]}
    checkpoint = folder / "whole" / f"epoch-{_epoch_of(folder / 'whole', middle)}_step-{middle}"
    again = [*flags, "--save_dir", str(folder / "again"), "--save_interval", "0", "--load_checkpoint", str(checkpoint)]
    rest = _train(settings, again)
    if rest.returncode:
        return {"resumed": False, "failed": rest.stdout[-2000:]}
    first, second = _metrics(folder / "whole"), _metrics(folder / "again")
    pairs = list(zip(first[middle:], second, strict=True))
    difference = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
    timed = first[2:middle]
    return {
        "resumed": difference < 0.02,
        "largest_difference_of_losses": difference,
        "to_the_last_bit": all(a["loss"] == b["loss"] and a["grad_norm"] == b["grad_norm"] for a, b in pairs),
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in timed),
        "mfu": statistics.median(line["mfu"] for line in timed),
        "peak_memory_gib": round(first[-1]["memory"] / 2**30, 2),
        "losses": [line["loss"] for line in first],
        "seconds": round(seconds, 1),
        "said": [line for line in whole.stdout.splitlines() if "memory" in line or "attention" in line],
    }


def _train(settings: GpuSettings, flags: list[str]) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(settings.nproc)]
    return subprocess.run(
        [sys.executable, *launcher, str(ROOT / "train.py"), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "4"},
    )


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def _epoch_of(folder: Path, step: int) -> int:
    return int(_metrics(folder)[step - 1]["epoch"])


def _inputs(work: Path, settings: GpuSettings) -> tuple[Path, Path]:
    width = settings.hidden_size
    heads = {"num_attention_heads": max(width // 128, 2), "num_key_value_heads": max(width // 256, 1)}
    sizes = {"hidden_size": width, "intermediate_size": width * 11 // 4, "num_hidden_layers": settings.num_layers}
    more = {"vocab_size": 32000, "max_position_embeddings": 2048, "initializer_range": 0.02}
    return make_tiny_inputs(work, 2048, 4000, "bfloat16", **heads, **sizes, **more)


if __name__ == "__main__":
    cli.run(GpuSettings, main)
