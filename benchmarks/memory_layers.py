"""Peak memory of a training step as more and more of its layers are recomputed, beside what the planner says.

    python benchmarks/memory_layers.py     one rank, on the CPU or on a GPU

Results: `benchmarks/results/memory_layers.json`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from benchmarks.training_memory import Case, case_shape, mark_collectives, measure
from colossal_llama2.engine import ranks
from colossal_llama2.engine.memory_plan import predict

ROOT = Path(__file__).resolve().parents[1]
CASE = Case(rows=8, length=96, layers=8, hidden=96, intermediate=256, heads=3, kv_heads=3, vocab=256)


def main() -> int:
    """Measure, print and write the row of layers."""
    ranks.launch(seed=0)
    if not torch.cuda.is_available():
        mark_collectives()
    rows = []
    for layers in (0, 2, 4, 6, 8):
        case = replace(CASE, checkpoint_layers=layers)
        peak, planned = measure(case)["peak"], predict(case_shape(case), case.request).allocated
        rows.append({"checkpoint_layers": layers, "measured": peak, "planned": planned})
        print(f"{layers} of {CASE.layers} layers recomputed: {peak / 2**20:.1f} MiB, {planned / 2**20:.1f} planned")
    ranks.close()
    target = ROOT / "benchmarks" / "results" / "memory_layers.json"
    content = {"machine": describe_machine(), "case": asdict(CASE), "rows": rows}
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
