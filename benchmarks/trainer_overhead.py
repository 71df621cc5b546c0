"""What train.py costs beside a bare PyTorch loop that does the same arithmetic.

    python benchmarks/trainer_overhead.py [--steps 60] [--output FILE.json]

One process, one CPU rank, zero2 in fp32, a small Llama. After every step of train.py's own loop the same batch goes
through a bare loop (forward, loss, backward, clip, fused AdamW, schedule) over a copy of the model, so both see the
same machine at the same time. Reported: the median of the paired ratios, logging to metrics.jsonl and TensorBoard
included.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from benchmarks.tiny_inputs import make_tiny_inputs
from colossal_llama2 import cli

ROOT = Path(__file__).resolve().parents[1]
ROWS, WARM_UP = 16, 5


@dataclass(frozen=True)
class OverheadSettings:
    """Measure the step time of train.py against a bare loop."""

    steps: int = 60
    """Steps to time, after five that are not."""
    output: Path = ROOT / "benchmarks" / "results" / "trainer_overhead.json"
    """Where the figures are written."""


class BareLoop:
    """The same arithmetic, written as short as it goes."""

    def __init__(self, model: Any, batches: Iterator[Any], lr: float) -> None:
        self.model, self._batches = model, batches
        embedding = model.get_input_embeddings().weight
        decayed = [p for p in model.parameters() if p.ndim > 1 and p is not embedding]
        others = [p for p in model.parameters() if p.ndim == 1 or p is embedding]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: 1.0)

    def step(self) -> float:
        """Do one step; return its loss."""
        (batch,) = next(self._batches).micro_batches
        bounds = {"cu_seq_lens_q": batch.cu_seq_lens, "max_length_q": batch.max_seq_len}
        output = self.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **bounds)
        wanted = batch.labels[:, 1:].reshape(-1)
        learned = wanted != -100
        logits = output.logits[:, :-1].reshape(-1, output.logits.shape[-1])[learned]
        loss = torch.nn.functional.cross_entropy(logits, wanted[learned])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._schedule.step()
        return loss.item()


class PairedLog:
    """Stands where the run's log stands: logs, and then lets the bare loop do its step."""

    def __init__(self, log: Any, bare: BareLoop) -> None:
        self._log, self._bare = log, bare
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.losses: list[tuple[float, float]] = []
        self._began = time.perf_counter()

    def step(self, metrics: Any) -> None:
        """Log a step of ours, time it, and time one of the bare loop."""
        self._log.step(metrics)
        self.ours.append(time.perf_counter() - self._began)
        began = time.perf_counter()
        loss = self._bare.step()
        self.theirs.append(time.perf_counter() - began)
        self.losses.append((metrics.loss, loss))
        self._began = time.perf_counter()

    def close(self) -> None:
        """Close the run's log."""
        self._log.close()


def main(settings: OverheadSettings) -> int:
    """Measure; exit 1 when the two loops did not do the same arithmetic."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        log = _train_both(Path(temporary), settings.steps + WARM_UP)
    ours, theirs = log.ours[WARM_UP:], log.theirs[WARM_UP:]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    difference = max(abs(a - b) for a, b in log.losses)
    result = {
        "machine": describe_machine(),
        "settings": {name: str(value) for name, value in asdict(settings).items() if name != "output"},
        "median_ratio": statistics.median(ratios),
        "quartiles_of_ratio": statistics.quantiles(ratios, n=4),
        "median_seconds": {"train.py": statistics.median(ours), "bare loop": statistics.median(theirs)},
        "largest_difference_of_losses": difference,
        "seconds": {"train.py": ours, "bare loop": theirs},
    }
    settings.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    medians = statistics.median(ours), statistics.median(theirs)
    ratio = statistics.median(ratios)
    print(f"{medians[0]:.4f} s against {medians[1]:.4f} s; median ratio {ratio:.4f}; losses {difference:.1e} apart")
    return 0 if difference < 1e-3 else 1


def _train_both(work: Path, steps: int) -> PairedLog:
    from colossal_llama2.engine import ranks
    from colossal_llama2.model.pretrained import load_for_training
    from colossal_llama2.train import loop, supervised
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

    model_dir, corpus_dir = _inputs(work)
    settings = TrainSettings(
        model=ModelOptions(pretrained=model_dir),
        data=DataOptions(
            dataset=(corpus_dir,), num_epochs=1000, max_steps=steps, micro_batch_size=ROWS, max_length=256
        ),
        output=OutputOptions(save_dir=work / "run", save_interval=0),
        optimizer=OptimizerOptions(lr=1e-3, warmup_steps=0, seed=3),
        parallel=ParallelOptions(plugin="zero2", mixed_precision="fp32"),
    )
    pretraining = Pretraining(settings)
    opened = open_run(pretraining)
    ranks.launch(3)
    run, position = supervised.build(pretraining, opened)
    run.session.scheduler.lr_lambdas[:] = [lambda step: 1.0] * len(run.session.scheduler.lr_lambdas)
    bare_model = load_for_training(model_dir, "fp32", use_flash_attn=False).train()
    log = PairedLog(run.log, BareLoop(bare_model, _endless(run.batches), 1e-3))
    loop.train(replace(run, log=log), position)  # type: ignore[arg-type]
    log.close()
    ranks.close()
    return log


def _endless(batches: Any) -> Iterator[Any]:
    epoch = 0
    while True:
        yield from batches.iterate(epoch)
        epoch += 1


def _inputs(work: Path) -> tuple[Path, Path]:
    """A model of 3.9 million parameters and rows of 256 tokens: 4,096 a step, as in one row of the default length."""
    config: dict[str, Any] = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256}
    config |= {"initializer_range": 0.02}
    return make_tiny_inputs(work, 256, 2000, **config)


if __name__ == "__main__":
    cli.run(OverheadSettings, main)
