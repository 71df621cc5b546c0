"""What an AdamW step costs: this project's optimizer beside torch's own, in turn, on the shapes of decoder layers.

    python benchmarks/optimizer_step.py

Every round times all forms once, in an order that changes, so that a busy machine disturbs all alike; what is reported
is the median of each round's ratio to torch's plain loop. Results: `benchmarks/results/optimizer_step.json`.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.engine.adam import FusedAdamW

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Settings:
    """Time optimizer steps."""

    hidden: int = 512
    """Width of the layers whose weights are updated."""
    layers: int = 4
    """How many of them."""
    rounds: int = 15
    """Rounds in which every form steps once."""


def main(settings: Settings) -> int:
    """Time every form in turn and write the ratios."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    forms: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "torch, a loop": lambda given: torch.optim.AdamW(given, foreach=False),
        "torch, foreach": lambda given: torch.optim.AdamW(given, foreach=True),
        "torch, fused": lambda given: torch.optim.AdamW(given, fused=True),
        "this project": FusedAdamW,
    }
    steps = {name: make(_parameters(settings, device)).step for name, make in forms.items()}
    draw, seconds = random.Random(0), {name: list[float]() for name in forms}
    for turn in range(settings.rounds + 2):
        for name in draw.sample(sorted(steps), len(steps)):
            taken = _timed(steps[name], device)
            if turn >= 2:  # the first ones make the moments
                seconds[name].append(taken)
    plain = seconds["torch, a loop"]
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(taken, plain, strict=True)), 4)
        for name, taken in seconds.items()
    }
    target = ROOT / "benchmarks" / "results" / "optimizer_step.json"
    content = {"machine": describe_machine(), "settings": asdict(settings), "device": device.type, "ratios": ratios}
    target.write_text(json.dumps({**content, "seconds": seconds}, indent=1) + "\n", encoding="utf-8")
    for name, ratio in ratios.items():
        print(f"{name:<16} {ratio:.2f} of torch's loop, median {statistics.median(seconds[name]) * 1e3:.1f} ms")
    return 0


def _parameters(settings: Settings, device: torch.device) -> list[nn.Parameter]:
    width, wide = settings.hidden, settings.hidden * 11 // 4
    shapes = [*[(width, width)] * 4, (wide, width), (wide, width), (width, wide), (width,), (width,)] * settings.layers
    parameters = [nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return parameters


def _timed(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    cli.run(Settings, main)
