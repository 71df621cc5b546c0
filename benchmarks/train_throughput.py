"""How fast train.py trains beside transformers' Trainer and a plain PyTorch loop, on the same rows and random weights.

    python benchmarks/train_throughput.py [--size toy] [--variants ours trainer plain] [--steps 60] [--dataset DIR]

On a CPU (size toy) the contenders run in lockstep, each in a process of its own, one step each in turn: all see the
same machine at the same time, and what is compared is the median of the ratios of neighbouring steps. On a GPU one run
has the card to itself; runs alternate, and medians of them are compared. Each variant (benchmarks/throughput_plan.py)
stands beside what was predicted of it before.

Equal are: the weights' shape, the rows and their order, rows in a step, fp32 master weights, fused AdamW, clipping at
1, the schedule's kind. Rows are single documents, for which Trainer's attention is the same; with --dataset they are
spliced, and Trainer and the plain loop attend across documents, which is other arithmetic than ours.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from benchmarks.throughput_plan import SIZES, VARIANTS
from benchmarks.throughput_summary import summary, table
from benchmarks.tiny_inputs import make_tiny_inputs
from colossal_llama2 import cli
from colossal_llama2.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
CONTENDERS = ROOT / "benchmarks" / "throughput_contenders.py"


@dataclass(frozen=True)
class ThroughputSettings:
    """Measure training speed."""

    size: Literal["toy", "125m", "1b", "7b"] = "toy"
    """Model: see SIZES."""
    variants: tuple[str, ...] = ("ours", "trainer", "plain")
    """What is compared: names in VARIANTS."""
    steps: int = 60
    """Steps to time in a run."""
    warm_up: int = 5
    """Steps before them."""
    runs: int = 3
    """Runs of each variant; in lockstep all are one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """What is computed in: bf16 on a GPU, fp32 on a CPU."""
    rows: int = 0
    """Rows in a step; 0 for the size's own."""
    length: int = 0
    """Tokens of a row; 0 for the size's own."""
    plugin: str = "zero2"
    """Plugin of ours."""
    dataset: str = ""
    """Prepared corpus to take the rows from, by this size's vocabulary; random rows without."""
    output: Path | None = None
    """Where the figures are written; default benchmarks/results/train_throughput_SIZE.json."""


def main(settings: ThroughputSettings) -> int:
    """Measure; exit 1 when a variant failed."""
    unknown = [name for name in settings.variants if name not in VARIANTS]
    if unknown:
        raise InputError(f"no variant is called {unknown[0]}", remedy=f"choose from {', '.join(VARIANTS)}")
    output = settings.output or ROOT / "benchmarks" / "results" / f"train_throughput_{settings.size}.json"
    with tempfile.TemporaryDirectory() as temporary:
        order = make_order(settings, Path(temporary))
        result = opening(settings, order)
        found = run_in_lockstep(settings, order) if order["lockstep"] else run_in_turn(settings, order)
    result |= summary(found, order, result)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    return 1 if any("failed" in entry for entry in result["variants"].values()) else 0


def make_order(settings: ThroughputSettings, work: Path) -> dict[str, Any]:
    """Write model and corpus, and what every contender is told."""
    import torch

    size, cuda = SIZES[settings.size], torch.cuda.is_available()
    length = settings.length or size.length
    tiny = work / "tiny"
    tiny.mkdir(parents=True)
    positions = {"max_position_embeddings": max(length, 128)}
    model_dir, corpus_dir = make_tiny_inputs(tiny, min(length, 48), 60)
    _put_model(model_dir, {**size.config, **positions}, cuda)
    half = settings.precision == "bf16" or (settings.precision == "auto" and cuda)
    return {
        "size": settings.size,
        "rows": settings.rows or size.rows,
        "length": length,
        "precision": "bf16" if half else "fp32",
        "plugin": settings.plugin,
        "steps": settings.steps,
        "warm_up": settings.warm_up,
        "dataset": settings.dataset,
        "lockstep": not cuda,
        "model_dir": str(model_dir),
        "corpus_dir": str(corpus_dir),
        "work": str(work),
    }


def _put_model(folder: Path, config: dict[str, Any], cuda: bool) -> None:
    """Put random weights of the size where the tiny model was, beside its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda" if cuda else "cpu"):
        model = LlamaForCausalLM(LlamaConfig(**config, bos_token_id=1, eos_token_id=2))
    (model.to(torch.bfloat16) if cuda else model).save_pretrained(folder)
    del model
    if cuda:
        torch.cuda.empty_cache()  # the contenders are other processes, and need all of the card


def opening(settings: ThroughputSettings, order: dict[str, Any]) -> dict[str, Any]:
    """Say on what machine, and how fast it multiplies at most."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from colossal_llama2.train.flops import measured_peak, peak_flops, step_flops

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if order["precision"] == "bf16" else torch.float32
    if device.type == "cpu":
        torch.set_num_threads(1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(order["model_dir"]))
    flops = step_flops(model).of(order["rows"] * order["length"], [order["length"]] * order["rows"])
    peak, source = peak_flops(device, dtype)
    fastest = measured_peak(device, dtype)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    titan = importlib.util.find_spec("torchtitan") is not None
    return {
        "machine": describe_machine(),
        "settings": {name: str(value) for name, value in asdict(settings).items() if name != "output"},
        "precision": order["precision"],
        "lockstep": order["lockstep"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_a_step": order["rows"] * order["length"],
        "flops_a_step": flops,
        "measured_matmul_flops": fastest,
        "peak_flops": peak,
        "peak_source": source,
        "torchtitan": "importable, and has no contender here" if titan else "not importable, not compared",
        "load_average": os.getloadavg()[0],
    }


def start(name: str, order: dict[str, Any]) -> subprocess.Popen[str]:
    """Start a variant's process."""
    variant = VARIANTS[name]
    count = len(list(Path(order["work"]).glob("run-*")))
    save_dir = Path(order["work"]) / f"run-{count}"
    save_dir.mkdir()
    more = {"contender": variant.contender, "flags": list(variant.flags), "save_dir": str(save_dir / "out")}
    threads = {} if not order["lockstep"] else {"OMP_NUM_THREADS": "1"}
    with (save_dir / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", str(CONTENDERS), json.dumps({**order, **more})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **threads, "PYTHONPATH": str(ROOT)},
        )


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        return {"failed": f"exit {process.wait()}"}
    answer: dict[str, Any] = json.loads(line)
    return answer


def run_in_lockstep(settings: ThroughputSettings, order: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Let every variant do a step in turn, the order reversed each time; return what each said in the end."""
    processes = {name: start(name, order) for name in settings.variants}
    try:
        said = {name: _answer(process) for name, process in processes.items()}
        for number in range(settings.warm_up + settings.steps):
            for name in sorted(processes, reverse=number % 2 == 1):
                if "failed" in said[name]:
                    continue
                stdin = processes[name].stdin
                assert stdin is not None
                stdin.write("go\n")
                stdin.flush()
                said[name] = _answer(processes[name])
        return {name: [_with_log(said[name], order, index)] for index, name in enumerate(settings.variants)}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def run_in_turn(settings: ThroughputSettings, order: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Let every variant run alone, all of them again and again."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in settings.variants}
    for _ in range(settings.runs):
        for name in settings.variants:
            if found[name] and "failed" in found[name][-1]:
                continue
            found[name].append(run_alone(name, order))
            print(name, json.dumps({k: v for k, v in found[name][-1].items() if k != "steps"}), flush=True)
    return found


def run_alone(name: str, order: dict[str, Any]) -> dict[str, Any]:
    """Run one variant to its end."""
    began = time.perf_counter()
    process = start(name, order)
    try:
        said = _answer(process)
    finally:
        process.kill()
        process.wait()
    count = len(list(Path(order["work"]).glob("run-*"))) - 1
    return {**_with_log(said, order, count), "process_seconds": round(time.perf_counter() - began, 1)}


def _with_log(said: dict[str, Any], order: dict[str, Any], number: int) -> dict[str, Any]:
    """Add the end of what a variant printed when it failed."""
    if "failed" not in said:
        return said
    text = (Path(order["work"]) / f"run-{number}" / "log").read_text(errors="replace")
    return {**said, "said": text[-1500:]}


if __name__ == "__main__":
    cli.run(ThroughputSettings, main)
