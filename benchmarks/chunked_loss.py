"""What does the loss over a large vocabulary cost, in memory and time, with and without its logits?

    python benchmarks/chunked_loss.py

plain: the head's product, in fp32 through torch's cross-entropy, as a model and its loss do it. recomputed: the same
from hidden states and head by `linear_cross_entropies`, whose backward pass makes the logits again. summed: by
`summed_cross_entropies`, which takes the gradients while the logits are there; liger: the same by Liger's kernel, on
CUDA with liger-kernel installed. Each is measured in a process of its own, by turns: the peak beyond what lay there
before (resident memory on a CPU, allocated memory on a GPU), and the median time forward and backward, by the clock
and by the processor (on a CPU that others use as well, the latter says more).

Predicted before it was measured: plain does three products, recomputed four, summed three, and each of them goes a few
times over the logits. The products are two thirds of the time at this width, so recomputed takes 1.3 to 1.6 of plain's
time, and summed 0.9 to 1.05: three products, and one pass less over the logits than torch's cross-entropy makes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.engine.chunked_loss import MOST_LOGITS_BYTES, linear_cross_entropies
from colossal_llama2.engine.liger_loss import liger_losses_and_gradients
from colossal_llama2.engine.summed_loss import Wanted, summed_cross_entropies
from colossal_llama2.model.fused_kernels import liger_is_usable


@dataclass(frozen=True)
class Settings:
    """Measure the loss with and without its logits."""

    vocabulary: int = 69_104
    """Pieces of the vocabulary."""
    hidden_size: int = 512
    """Width of the hidden states."""
    tokens: int = 4096
    """Tokens of a micro-batch."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """What hidden states and head are in (fp32 on a CPU, where bf16 products are slow)."""
    most_mb: int = MOST_LOGITS_BYTES >> 20
    """Logits that a chunk may hold, in MiB."""
    repeats: int = 3
    """Times each way is measured in its process; processes alternate twice."""
    output: Path = Path(__file__).resolve().parent / "results" / "chunked_loss.json"
    """File to write the result to."""
    only: Literal["", "plain", "recomputed", "summed", "liger"] = ""
    """Measure one way in this process and print it as JSON."""


def main(settings: Settings) -> None:
    """Measure every way in processes of their own and write what came out."""
    if settings.only:
        sys.stdout.write(json.dumps(_measure(settings)) + "\n")
        return
    ways = ("plain", "recomputed", "summed", *(("liger",) if torch.cuda.is_available() and liger_is_usable() else ()))
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(2):
        for way, results in found.items():
            flags = [f"--{name}={getattr(settings, name)}" for name in _PASSED_ON]
            command = [sys.executable, __file__, f"--only={way}", *flags]
            results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    best = {
        way: {name: min(result[name] for result in results) for name in results[0]} for way, results in found.items()
    }
    content: dict[str, Any] = {
        "machine": describe_machine(),
        "settings": {name: getattr(settings, name) for name in _PASSED_ON},
        "logits_fp32_mb": round(settings.tokens * settings.vocabulary * 4 / 2**20),
        "best": best,
        "of_plain": {
            way: {name: round(values[name] / best["plain"][name], 3) for name in values} for way, values in best.items()
        },
        "all": found,
    }
    settings.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for way, values in best.items():
        memory, seconds, cpu_seconds = content["of_plain"][way].values()
        cli.say(
            f"{way:>10}: peak {values['peak_mb']:6.0f} MiB, {values['seconds']:.3f} s forward and backward: "
            f"memory {memory:.2f}, time {seconds:.2f}, processor time {cpu_seconds:.2f} of the plain form"
        )


_PASSED_ON = ("vocabulary", "hidden_size", "tokens", "dtype", "most_mb", "repeats")


def _measure(settings: Settings) -> dict[str, float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.dtype]
    torch.manual_seed(0)
    hidden = torch.randn(settings.tokens, settings.hidden_size, device=device).to(dtype).requires_grad_()
    weight = torch.randn(settings.vocabulary, settings.hidden_size, device=device).mul_(0.02).to(dtype).requires_grad_()
    targets = torch.randint(settings.vocabulary, (settings.tokens,), device=device)

    most_bytes = settings.most_mb << 20

    def loss_sum() -> torch.Tensor:
        if settings.only == "plain":
            return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none").sum()
        if settings.only == "recomputed":
            return linear_cross_entropies(hidden, weight, targets, most_bytes=most_bytes).sum()
        kernel = liger_losses_and_gradients if settings.only == "liger" else None
        return summed_cross_entropies(hidden, weight, targets, Wanted(most_bytes=most_bytes), kernel).total

    def step() -> None:
        hidden.grad = weight.grad = None
        loss_sum().backward()

    with _Peak(device) as peak:
        step()
    times, processor_times = [], []
    for _ in range(settings.repeats):
        began, processor_began = time.perf_counter(), time.process_time()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        processor_times.append(time.process_time() - processor_began)
    return {
        "peak_mb": peak.bytes / 2**20,
        "seconds": statistics.median(times),
        "cpu_seconds": statistics.median(processor_times),
    }


class _Peak:
    """The most memory held inside a block, beyond what was held at its beginning."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.bytes = 0

    def __enter__(self) -> _Peak:
        self._over = threading.Event()
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return self
        self._before = _resident()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        if self._device == "cuda":
            self.bytes = torch.cuda.max_memory_allocated() - self._before
        else:
            self._watch.join()

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self.bytes = max(self.bytes, _resident() - self._before)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    cli.run(Settings, main)
