"""From the runs of the throughput benchmark to its rows: medians, ratios, and the prediction beside them."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.throughput_plan import VARIANTS

WALL, CPU = 0, 1


def summary(found: dict[str, list[dict[str, Any]]], order: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Turn runs into a row a variant: medians, ratios to what it is compared with, MFU, the prediction beside it."""
    rows: dict[str, Any] = {}
    for name, runs in found.items():
        variant = VARIANTS[name]
        if any("failed" in run for run in runs):
            rows[name] = {"flags": variant.flags, **next(run for run in runs if "failed" in run)}
            continue
        wall = statistics.median(_samples(runs, order, WALL))
        rows[name] = {
            "flags": variant.flags,
            "seconds_a_step": wall,
            "cpu_seconds_a_step": statistics.median(_samples(runs, order, CPU)),
            "tokens_per_second": result["tokens_a_step"] / wall,
            "mfu": result["flops_a_step"] / wall / result["peak_flops"],
            "share_of_measured_matmul": result["flops_a_step"] / wall / result["measured_matmul_flops"],
            "peak_memory_gib": round(max(run["peak_memory"] for run in runs) / 2**30, 3),
            "first_and_last_loss": [runs[0]["losses"][0], runs[0]["losses"][-1]],
            "waits_for_the_device_in_timed_steps": runs[0].get("waits"),
            "against": variant.against,
            "predicted": variant.predicted,
            "because": variant.because,
            "measured": _ratio(name, found, order, WALL),
            "measured_by_cpu_seconds": _ratio(name, found, order, CPU),
            "steps": [run["steps"] for run in runs],
        }
    return {"variants": rows}


def _ratio(
    name: str, found: dict[str, list[dict[str, Any]]], order: dict[str, Any], clock: int
) -> dict[str, float] | None:
    """Return how many times the tokens per second of what a variant is compared with it reaches, with quartiles."""
    against = VARIANTS[name].against
    others = found.get(against, [])
    if name == against or not others or any("failed" in run for run in others):
        return None
    pairs = zip(_samples(others, order, clock), _samples(found[name], order, clock), strict=True)
    ratios = [theirs / own for theirs, own in pairs if own > 0]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"median": middle, "lower_quartile": low, "upper_quartile": high, "pairs": len(ratios)}


def _samples(runs: list[dict[str, Any]], order: dict[str, Any], clock: int) -> list[float]:
    """Return the seconds of a step: of each in lockstep, else each run's mean: its steps run into one another."""
    timed = [[step[clock] for step in run["steps"][order["warm_up"] :]] for run in runs]
    return timed[0] if order["lockstep"] else [statistics.mean(run) for run in timed]


def table(result: dict[str, Any]) -> str:
    """Write the rows for a person."""
    lines = [
        f"{'variant':18} {'tokens/s':>10} {'MFU':>6} {'of matmul':>9} {'GiB':>7} {'ratio':>6} {'CPU s':>6}  predicted"
    ]
    for name, row in result["variants"].items():
        if "failed" in row:
            lines.append(f"{name:18} failed ({row['failed']}): {row['said'].strip().splitlines()[-1:]}")
            continue
        ratios = [
            f"{row[key]['median']:6.3f}" if row[key] else " " * 6 for key in ("measured", "measured_by_cpu_seconds")
        ]
        lines.append(
            f"{name:18} {row['tokens_per_second']:10,.0f} {row['mfu']:6.1%} {row['share_of_measured_matmul']:9.1%} "
            f"{row['peak_memory_gib']:7.2f} {ratios[0]} {ratios[1]}  "
            + (f"{row['predicted']} of {row['against']}" if row["predicted"] else "")
        )
    return "\n".join(lines)
