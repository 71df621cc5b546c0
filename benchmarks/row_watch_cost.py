"""What watching the new rows costs: of every step, and of a report.

    python benchmarks/row_watch_cost.py [--steps 200] [--output FILE.json]

One process, one CPU rank, zero2 in fp32, the small Llama of `trainer_overhead.py`, half of whose pieces count as new.
train.py's own loop runs; from step to step the new rows are watched or not, in the order A B B A, so both see the same
machine. A step is timed in CPU seconds as well as in wall time: other work on the machine moves the second more. What
watching adds is also timed by itself, because it is less than a step's time varies by.

Then the arithmetic of a report on one matrix of 7B size (52,000 x 4096 in fp32, 20,000 rows of them new), as a rank
does it that holds all of it; N ranks of ZeRO or Gemini hold an N-th each.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from benchmarks.tiny_inputs import make_tiny_inputs
from colossal_llama2 import cli

ROOT = Path(__file__).resolve().parents[1]
ROWS, WARM_UP = 16, 8
VOCABULARY, NEW, WIDTH = 52_000, 20_000, 4096


@dataclass(frozen=True)
class WatchCostSettings:
    """Measure what watching new rows costs."""

    steps: int = 200
    """Steps to time, half of them watched, after eight that are not timed."""
    output: Path = ROOT / "benchmarks" / "results" / "row_watch_cost.json"
    """Where the figures are written."""


class TurningLog:
    """Stands where the run's log stands: times the step that has ended, and turns the watch on or off for the next."""

    def __init__(self, log: Any, run: Any, watched: tuple[Any, Any], plain: tuple[Any, Any]) -> None:
        self._log, self._run, self._kinds = log, run, (plain, watched)
        self.seconds: list[tuple[float, float]] = []
        self._turn(0)

    def step(self, metrics: Any) -> None:
        """Log a step, outside the time."""
        self.seconds.append((time.process_time() - self._cpu, time.perf_counter() - self._wall))
        self._log.step(metrics)
        self._turn(len(self.seconds))

    def watched(self, place: int) -> bool:
        """Whether a step is watched: A B B A."""
        return place % 4 in (1, 2)

    def _turn(self, place: int) -> None:
        self._run.new_rows, self._run.objective = self._kinds[self.watched(place)]
        self._cpu, self._wall = time.process_time(), time.perf_counter()


def main(settings: WatchCostSettings) -> int:
    """Measure, and write the figures down."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        log = _train(Path(temporary), settings.steps + WARM_UP)
    ratios: dict[str, list[float]] = {"cpu": [], "wall": []}
    for place in range(WARM_UP, len(log.seconds) - 1, 2):
        plain, watched = (place, place + 1) if log.watched(place + 1) else (place + 1, place)
        for column, name in enumerate(ratios):
            ratios[name].append(log.seconds[watched][column] / log.seconds[plain][column])
    result = {
        "machine": describe_machine(),
        "steps": settings.steps,
        "tokens_per_step": ROWS * 256,
        "median_ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "quartiles_of_ratio": {name: statistics.quantiles(values, n=4) for name, values in ratios.items()},
        "median_cpu_seconds_of_a_step": statistics.median(cpu for cpu, _ in log.seconds[WARM_UP:]),
        "added_to_a_step": _added_seconds(),
        "report": _report_seconds(),
        "seconds": log.seconds,
    }
    settings.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in result.items() if name != "seconds"}, indent=1))
    return 0


def _train(work: Path, steps: int) -> TurningLog:
    from colossal_llama2.engine import ranks
    from colossal_llama2.train import loop, stage, supervised
    from colossal_llama2.train.opening import open_run
    from colossal_llama2.train.pretrain import Pretraining
    from colossal_llama2.train.settings import (
        DataOptions,
        ModelOptions,
        OptimizerOptions,
        OutputOptions,
        ParallelOptions,
        TrainSettings,
    )

    config: dict[str, Any] = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256}
    model_dir, corpus_dir = make_tiny_inputs(work, 256, 2000, initializer_range=0.02, **config)
    (model_dir / "expansion.json").write_text('{"base_tokens": 310, "num_tokens": 360}', encoding="utf-8")
    data = DataOptions((corpus_dir,), num_epochs=1000, max_steps=steps, micro_batch_size=ROWS, max_length=256)
    settings = TrainSettings(
        model=ModelOptions(pretrained=model_dir),
        data=data,
        output=OutputOptions(save_dir=work / "run", save_interval=0, new_rows_interval=10**9),
        optimizer=OptimizerOptions(lr=1e-3, warmup_steps=0, seed=3),
        parallel=ParallelOptions(plugin="zero2", mixed_precision="fp32"),
    )
    pretraining = Pretraining(settings)
    opened = open_run(pretraining)
    ranks.launch(3)
    run, position = supervised.build(pretraining, opened)
    turning: Any = SimpleNamespace(**vars(run))
    turning.total_steps = steps + 1  # so that no step is the last, which reports
    log = TurningLog(run.log, turning, (run.new_rows, run.objective), (None, stage.PRETRAINING))
    turning.log = log
    batches, done = run.batches.iterate, iter(range(steps))
    turning.batches = SimpleNamespace(
        corpus=run.batches.corpus, iterate=lambda *at: (batch for _, batch in zip(done, batches(*at), strict=False))
    )
    loop.train(turning, position)
    assert run.new_rows is not None
    assert run.new_rows.seen.inputs.any(), "no new token was seen, so nothing was measured"
    assert run.log is not None
    run.log.close()
    ranks.close()
    return log


def _added_seconds() -> dict[str, float]:
    """Time what is done for a step of 16 rows of 256 tokens: looking for new tokens, taking their losses apart."""
    from colossal_llama2.dataset.batches import collate
    from colossal_llama2.dataset.parts import Row
    from colossal_llama2.train.seen_rows import SeenRows

    ids = (np.arange(256) % 50 + 310).astype(np.int32)
    batch = collate([Row(ids, ids, np.full(16, 16, np.int32)) for _ in range(ROWS)])
    seen, losses = SeenRows(range(310, 360)), torch.rand(batch.num_learned)
    targets = batch.labels[batch.labels >= 0]

    def apart() -> torch.Tensor:
        return losses.where((targets >= 310) & (targets < 360), 0.0).sum()

    work = {"new tokens": lambda: seen.add(seen.look([batch])), "losses on them": apart}
    return {name: _cpu_seconds(part, 200) for name, part in work.items()}


def _cpu_seconds(part: Callable[[], Any], repeats: int) -> float:
    part()
    began = time.process_time()
    for _ in range(repeats):
        part()
    return round((time.process_time() - began) / repeats, 6)


def _report_seconds() -> dict[str, float]:
    """Time what a rank adds up for a report on one matrix that it holds whole, and one reading of the matrix."""
    from colossal_llama2.engine.token_rows import Run, comparison, products, squares

    old, new = range(VOCABULARY - NEW), range(VOCABULARY - NEW, VOCABULARY)
    matrix = torch.ones(VOCABULARY, WIDTH)
    run = Run(0, matrix.view(-1), WIDTH)
    start = Run(new.start * WIDTH, torch.ones(NEW * WIDTH, dtype=torch.bfloat16), WIDTH)
    work: dict[str, Callable[[], Any]] = {
        "comparison with the start": lambda: comparison(run, start, new),
        "norms of old rows": lambda: squares(run, old),
        "nearest old rows of 8": lambda: products(run, old, matrix[:8]),
        "one reading of the matrix": matrix.sum,
    }
    return {name: _cpu_seconds(part, 3) for name, part in work.items()}


if __name__ == "__main__":
    cli.run(WatchCostSettings, main)
