"""Set the memory plan beside what training really takes: a random Llama, every plugin, a few steps each.

    python benchmarks/memory_plan.py     on CPU ranks; on a GPU where there is one, with a model of 1.25 billion
    parameters

Results: `benchmarks/results/memory_plan.json` (CPU) or `memory_plan_cuda.json`. Exits with 1 when a peak is off by more
than 15%.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from benchmarks.training_memory import Case, case_shape
from colossal_llama2.engine.memory_plan import MemoryPlan, predict
from colossal_llama2.engine.plan_request import PluginName
from colossal_llama2.engine.state_memory import state_memory

ROOT = Path(__file__).resolve().parents[1]

TOLERANCE = 0.15
_SMALL = Case()
_WIDE = replace(_SMALL, hidden=384, intermediate=1024, kv_heads=6, vocab=8192)
_DEEP = replace(_SMALL, layers=8, rows=8)
_PLUGINS: tuple[PluginName, ...] = ("zero2", "zero2_cpu", "gemini", "gemini_auto", "ddp")
_OTHER_KINDS: tuple[PluginName, ...] = ("zero2", "gemini", "ddp")
CPU_CASES = [
    *(replace(_SMALL, plugin=p, ranks=r) for p in _PLUGINS for r in (1, 2)),
    *(replace(_WIDE, plugin=p, ranks=2, recompute=True, accumulation=2) for p in _OTHER_KINDS),
    *(replace(_WIDE, plugin=p, rows=6, recompute=c) for p in _OTHER_KINDS for c in (False, True)),
    replace(_WIDE, precision="fp32", rows=4),
    replace(_WIDE, precision="fp16", rows=4, tied=True),
    replace(_WIDE, frozen=True, rows=4),
    replace(_WIDE, frozen=True, plugin="gemini", ranks=2, rows=4),
    replace(_SMALL, rows=1, length=768, kv_heads=6),
    replace(_SMALL, rows=16, length=64, precision="fp32", plugin="ddp"),
    replace(_SMALL, vocab=32768, rows=4),
    *(replace(_DEEP, plugin=p, checkpoint_layers=n) for p in _OTHER_KINDS for n in (0, 2, 4, 6, 8)),
    replace(_DEEP, ranks=2, checkpoint_layers=4),
    *(replace(_SMALL, plugin=p, vocab=32768, rows=20, defer=True) for p in _OTHER_KINDS),
]
_BILLION = Case(
    rows=4, length=2048, flash=True, hidden=2048, intermediate=5632, layers=22, heads=32, kv_heads=4, vocab=69120
)
GPU_CASES = [
    *(replace(_BILLION, plugin=p) for p in _PLUGINS),
    *(replace(_BILLION, plugin=p, recompute=True, accumulation=2) for p in _OTHER_KINDS),
    replace(_BILLION, flash=False, rows=2),
    replace(_BILLION, precision="fp32", flash=False, rows=1),
    replace(_BILLION, precision="fp16", tied=True, recompute=True, rows=16),
    replace(_BILLION, frozen=True, recompute=True, rows=8),
    *(replace(_BILLION, defer=True, checkpoint_layers=n) for n in (0, 8, 16, 22)),
]


def main() -> int:
    """Measure every case; return 1 when a peak is too far off."""
    on_cuda = torch.cuda.is_available()
    cases = GPU_CASES if on_cuda else CPU_CASES
    # On CUDA a process a case: what an earlier one leaves behind would count. A CPU's peak is counted from its own
    # start.
    batches = [[case] for case in cases] if on_cuda else [[c for c in cases if c.ranks == n] for n in (1, 2)]
    compared = [row for batch in batches for row in compare(batch, on_cuda)]
    for row in compared:
        name = ", ".join(f"{key} {value}" for key, value in row["case"].items() if value != getattr(Case(), key))
        print(f"{row['deviation']:+7.1%}  {row['measured']['peak'] / 2**20:9.1f} MiB  {name or 'as it comes'}")
    target = ROOT / "benchmarks" / "results" / ("memory_plan_cuda.json" if on_cuda else "memory_plan.json")
    content = {"machine": describe_machine(), "tolerance": TOLERANCE, "cases": compared}
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    worst = max(abs(row["deviation"]) for row in compared)
    print(f"largest deviation of a peak: {worst:.1%}; raw results: {target.relative_to(ROOT)}")
    return 0 if worst <= TOLERANCE else 1


def compare(cases: list[Case], on_cuda: bool) -> list[dict[str, Any]]:
    """Plan cases of one number of ranks, run them, and return both."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(cases[0].ranks), str(Path(__file__).with_name("training_memory.py"))]
    done = subprocess.run(
        [*command, json.dumps([asdict(case) for case in cases])],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    lines = [line.removeprefix("measured ") for line in done.stdout.splitlines() if line.startswith("measured ")]
    if len(lines) < len(cases):
        raise RuntimeError(f"{cases[len(lines)]}: {done.stdout}{done.stderr}")
    compared = []
    for case, measured in zip(cases, map(json.loads, lines), strict=True):
        predicted = predicted_kinds(case, predict(case_shape(case), case.request), on_cuda)
        deviation = round((predicted["peak"] - measured["peak"]) / measured["peak"], 4)
        compared.append({"case": asdict(case), "predicted": predicted, "measured": measured, "deviation": deviation})
    return compared


def predicted_kinds(case: Case, plan: MemoryPlan, on_cuda: bool) -> dict[str, Any]:
    """Return what the plan says of a rank; on a CPU device and host memory are one, and nothing is pinned twice."""
    state = state_memory(case_shape(case), case.request)
    host = 0 if on_cuda or case.plugin == "gemini" else 1
    resident = host * (state.weights_host + state.optimizer_host + state.gradients_host)
    totals = {
        moment.name: moment.total + resident + host * state.update_host * (moment.name == "the update")
        for moment in plan.moments
    }
    fullest = max(totals, key=lambda name: totals[name])
    return {
        "weights": state.weights + host * state.weights_host,
        "optimizer": state.optimizer + host * state.optimizer_host,
        "gradients": state.gradients + host * state.gradients_host,
        "peak": totals[fullest],
        "at": fullest,
    }


if __name__ == "__main__":
    raise SystemExit(main())
