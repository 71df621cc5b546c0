"""What saving a checkpoint costs: seconds that training waits, and memory beyond what training takes.

    python benchmarks/checkpoint_cost.py [--output FILE.json]

A random Llama of about 200 million parameters on two CPU ranks, in bf16 with fp32 masters. Each rank trains two steps,
saves in one of three ways, and reports its resident memory's peak during the save above what it was before. The ways:
``sync`` and ``async`` are ours; ``booster`` is ColossalAI's own ``save_model`` and ``save_optimizer``, the masters in
place of the working weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from colossal_llama2 import cli

RESULTS = Path(__file__).resolve().parent / "results"
RANKS = 2
WAYS = ("booster", "sync", "async")


@dataclass(frozen=True)
class CheckpointCost:
    """Measure what a save takes in time and memory."""

    plugin: tuple[str, ...] = ("zero2", "gemini")
    """ColossalAI plugins, one after the other."""
    hidden_size: int = 1024
    """Width of the model; 1024 makes 200 million parameters of 12 layers."""
    output: Path = RESULTS / "checkpoint_cost.json"
    """Where the result is written."""


def main(settings: CheckpointCost) -> None:
    """Measure every plugin and every way in processes of their own, and write the result."""
    result: dict[str, Any] = {"machine": describe_machine(), "ranks": RANKS, "mixed_precision": "bf16", "saves": []}
    for plugin in settings.plugin:
        for way in WAYS:
            ranks = _measure(plugin, way, settings.hidden_size)
            result["saves"].append({"plugin": plugin, "way": way, "by_rank": ranks})
            shown = ", ".join(f"{rank['waits_s']:.2f} s and {rank['peak_mb']:.0f} MB" for rank in ranks)
            print(f"{plugin} {way}: training waits {shown}", flush=True)
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps(result) + "\n", encoding="utf-8")


def _measure(plugin: str, way: str, width: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS)]
        order = json.dumps({"plugin": plugin, "way": way, "width": width, "folder": folder})
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "CHECKPOINT_COST": order}
        subprocess.run([sys.executable, "-W", "ignore", *launcher, __file__], env=environment, check=True)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(RANKS)]


def _as_rank(order: dict[str, Any]) -> None:
    """Train a step, save, and write down what it took; runs on every rank."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from colossal_llama2.engine import checkpoint, ranks
    from colossal_llama2.engine.plugins import PluginSettings
    from colossal_llama2.engine.running_state import RunIdentity, RunningState
    from colossal_llama2.engine.session import AdamSettings, Session

    ranks.launch(seed=0)
    width, folder = order["width"], Path(order["folder"])
    config = LlamaConfig(
        vocab_size=16_000,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=12,
        num_attention_heads=16,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    if ranks.is_first():
        config.save_pretrained(folder / "base")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    session = Session(PluginSettings(order["plugin"], "bf16"), model, groups, AdamSettings(), lambda step: 1.0)
    del model
    seconds_per_step = [_train(session) for _ in range(2)][-1]
    state = RunningState(0, 2, 0, 0, 2, RANKS, order["plugin"], "bf16", RunIdentity("", "", "everything", 0))
    if order["way"] == "booster":
        checkpoint._STREAMED_PLUGINS = ()
    measured: dict[str, Any] = {"parameters": parameters, "step_s": seconds_per_step}
    ranks.barrier()
    with _peak_memory(measured):
        began = time.perf_counter()
        in_background = order["way"] == "async"
        save = checkpoint.begin_checkpoint(session, folder, "epoch-0_step-2", folder / "base", in_background)
        measured["waits_s"] = time.perf_counter() - began
        if in_background:
            measured["step_beside_it_s"] = _train(session)
        ended = time.perf_counter()
        save.complete(state)
        measured["completing_s"] = time.perf_counter() - ended
        measured["whole_after_s"] = time.perf_counter() - began
        if not in_background:
            measured["waits_s"] = measured["whole_after_s"]
    (folder / f"{ranks.rank()}.json").write_text(json.dumps(measured))
    ranks.barrier()
    torch.distributed.destroy_process_group()


def _train(session: Any) -> float:
    import torch

    began = time.perf_counter()
    ids = torch.arange(8).reshape(1, 8)
    session.backward(session.forward(input_ids=ids, labels=ids, use_cache=False).loss)
    session.step()
    return time.perf_counter() - began


@contextmanager
def _peak_memory(measured: dict[str, Any]) -> Iterator[None]:
    """Note the largest resident set inside, above that at the start, in MB; looked at every few milliseconds."""
    resident: Callable[[], int] = _resident_bytes
    before, largest, over = resident(), [0], threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            largest[0] = max(largest[0], resident())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    yield
    over.set()
    watcher.join()
    measured["before_mb"], measured["peak_mb"] = before / 1e6, (largest[0] - before) / 1e6


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    if "CHECKPOINT_COST" in os.environ:
        _as_rank(json.loads(os.environ["CHECKPOINT_COST"]))
    else:
        cli.run(CheckpointCost, main)
