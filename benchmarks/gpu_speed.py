"""The table of training speed on one large card: 7B at 4096 tokens, ours in bf16 and float8 beside Trainer.

    python benchmarks/gpu_speed.py --output FILE.json [--minutes 25]

Runs of `train_throughput.py`, each alone on the card, in the order of what matters most, again and again until the
time is over; what a run of a variant takes is known after its first, and none is begun that would not end in time. The
file is written anew after each. A variant whose flags this tree does not know, or whose memory does not suffice, stands
in it with what it said. With --dry the same is done at toy size in a minute, on any machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.throughput_plan import VARIANTS
from benchmarks.throughput_summary import summary, table
from benchmarks.train_throughput import ThroughputSettings, make_order, opening, run_alone
from colossal_llama2 import cli

TARGETS = {"ours": 12500, "ours_float8": 16000}
"""Tokens per second asked of the 7B model on one H200."""
ORDER = (
    "ours",
    "trainer",
    "ours_float8",
    "trainer_liger",
    "ours_flash",
    "ours_unfused",
    "ours_compile",
    "ours_count_waits",
    "ours_read_at_once",
    "ours_recompute",
    "trainer_recompute",
    "ours_checkpoint_8",
    "plain",
)


@dataclass(frozen=True)
class GpuSpeedSettings:
    """Fill the table of training speed."""

    output: Path
    """Where the figures are written."""
    minutes: float = 25.0
    """Time for everything."""
    variants: tuple[str, ...] = ORDER
    """What is run, the most important first."""
    runs: int = 3
    """Runs of a variant, while there is time."""
    steps: int = 12
    """Steps timed in a run."""
    rows: int = 1
    """Rows of 4096 tokens in a step."""
    dry: bool = False
    """Do all of it at toy size."""


def main(settings: GpuSpeedSettings) -> int:
    """Measure; exit 1 when ours or Trainer did not run."""
    end = time.monotonic() + settings.minutes * 60
    asked = ThroughputSettings(
        size="toy" if settings.dry else "7b",
        variants=settings.variants,
        steps=2 if settings.dry else settings.steps,
        warm_up=2 if settings.dry else 4,
        rows=1 if settings.dry else settings.rows,
        length=32 if settings.dry else 0,
    )
    with tempfile.TemporaryDirectory() as temporary:
        order = {**make_order(asked, Path(temporary)), "lockstep": False}
        result = {**opening(asked, order), "targets": {} if settings.dry else TARGETS}
        found: dict[str, list[dict[str, Any]]] = {}
        for name in _queue(settings):
            runs = found.setdefault(name, [])
            if any("failed" in run for run in runs):
                continue
            expected = max((run["process_seconds"] for of_one in found.values() for run in of_one), default=0.0)
            if time.monotonic() + expected > end:
                break
            runs.append(run_alone(name, order))
            result |= summary({key: value for key, value in found.items() if value}, order, result)
            settings.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(table(result), flush=True)
    return 1 if any("failed" in result["variants"].get(name, {"failed": ""}) for name in settings.variants[:2]) else 0


def _queue(settings: GpuSpeedSettings) -> list[str]:
    """Every variant once, then again: the first two are the ones whose ratio counts and come in every round."""
    unknown = [name for name in settings.variants if name not in VARIANTS]
    assert not unknown, unknown
    return [name for _ in range(settings.runs) for name in settings.variants]


if __name__ == "__main__":
    cli.run(GpuSpeedSettings, main)
