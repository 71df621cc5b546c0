"""One contender of `train_throughput.py` in a process of its own: it trains, and says what its steps took.

Started with an order (JSON) as its argument. In lockstep it waits before each step for a line on its standard input, so
that several take turns on one machine; otherwise it runs through. It answers in lines of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.throughput_plan import SIZES, RandomRows, Size


class Metronome:
    """Times the steps of a contender, which calls `begin` before the first and `done` after each.

    Args:
        order: of the run.
        answers: where what is found is written to.
    """

    def __init__(self, order: dict[str, Any], answers: Any) -> None:
        self.steps: list[tuple[float, float]] = []  # wall and processor seconds
        self.losses: list[float] = []
        self.waits: int | None = None
        self._order, self._answers = order, answers
        self._began = (0.0, 0.0)

    def begin(self) -> None:
        """Wait for the first turn."""
        self._wait()

    def done(self, wall: float | None = None) -> None:
        """Take note of a step, whose seconds may be known better; wait for the next turn."""
        warm = len(self.steps) + 1 in (self._order["warm_up"], self.total)
        if wall is None and warm and torch.cuda.is_available():
            torch.cuda.synchronize()  # elsewhere the host may run ahead: only the sum is right
        now = self._now()
        own, cpu = (a - b for a, b in zip(now, self._began, strict=True))
        self.steps.append((own if wall is None else wall, cpu))
        self._began = now
        if len(self.steps) < self.total:
            self._wait()

    def count_waits(self) -> None:
        """Count from here on what lets the host wait for the device, by torch's own account; CUDA alone has one."""
        self.waits = 0
        if not torch.cuda.is_available():
            return

        def counted(message: Any, *more: Any, **how: Any) -> None:
            self.waits = (self.waits or 0) + ("synchronizing CUDA operation" in str(message))

        warnings.showwarning = counted
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")

    @property
    def total(self) -> int:
        """Steps of the run."""
        return int(self._order["warm_up"]) + int(self._order["steps"])

    def tell(self, **what: Any) -> None:
        """Answer."""
        print(json.dumps(what), file=self._answers, flush=True)

    def _wait(self) -> None:
        if self._order["lockstep"]:
            self.tell(steps=self.steps[-1:])
            if not sys.stdin.readline():
                raise SystemExit("the benchmark is gone")
            self._began = self._now()
        elif not self.steps:
            self._began = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def rows_of(order: dict[str, Any], size: Size) -> Any:
    """Open the rows that everybody learns."""
    if not order["dataset"]:
        return RandomRows(size.config["vocab_size"], order["length"])
    from colossal_llama2.dataset.corpus import PreparedCorpus

    return PreparedCorpus.open([Path(order["dataset"])])


def batches_of(order: dict[str, Any], size: Size) -> Iterator[Any]:
    """Deal the rows as train.py does, for ever."""
    from colossal_llama2.dataset.loader import GlobalBatches, LoaderSettings

    batches = GlobalBatches(rows_of(order, size), LoaderSettings(0, 1, order["rows"], 1, seed=3))
    epoch = 0
    while True:
        for step in batches.iterate(epoch):
            yield step.micro_batches[0]
        epoch += 1


def ours(order: dict[str, Any], size: Size, beat: Metronome) -> None:
    """Train by train.py's own stage and loop; the tiny corpus that opens the run gives way to the rows."""
    from colossal_llama2 import cli
    from colossal_llama2.dataset.loader import GlobalBatches
    from colossal_llama2.engine import ranks
    from colossal_llama2.train import loop, supervised
    from colossal_llama2.train.opening import open_run
    from colossal_llama2.train.pretrain import Pretraining
    from colossal_llama2.train.settings import TrainSettings

    flags = ["--pretrained", order["model_dir"], "--dataset", order["corpus_dir"], "--save_dir", order["save_dir"]]
    flags += ["--max_steps", beat.total, "--num_epochs", 100000, "--save_interval", 0, "--lr", 1e-4, "--seed", 3]
    flags += ["--micro_batch_size", order["rows"], "--mixed_precision", order["precision"], "--warmup_steps", 0]
    flags += ["--max_length", order["length"], "--plugin", order["plugin"], "--new_rows_interval", 0]
    own = [flag for flag in order["flags"] if flag not in ("read_at_once", "count_waits")]
    stage = Pretraining(cli.parse(TrainSettings, [str(flag) for flag in (*flags, *own)]))
    opened = open_run(stage)
    ranks.launch(3)
    run, position = supervised.build(stage, opened)
    batches = GlobalBatches(rows_of(order, size), replace(run.batches.settings, length=None))
    assert run.log is not None
    log = run.log

    class Counted:
        """The run's log, and the metronome behind it."""

        def step(self, metrics: Any) -> None:
            """Log a step."""
            log.step(metrics)
            if metrics.step == order["warm_up"] and "count_waits" in order["flags"]:
                beat.count_waits()
            beat.losses.append(metrics.loss)
            beat.done(None if order["lockstep"] else metrics.seconds)

    changed: Any = {"batches": batches, "log": Counted()}
    if "read_at_once" in order["flags"]:
        changed["reads_late"] = False
    beat.begin()
    loop.train(replace(run, **changed), position)
    run.stop.close()
    log.close()


def plain(order: dict[str, Any], size: Size, beat: Metronome) -> None:
    """Train by a loop of ten lines: transformers' model with SDPA, autocast, fused AdamW."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _model(order, device).train()
    if "recompute" in order["flags"]:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batches = batches_of(order, size)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=order["precision"] == "bf16")
    losses = []
    beat.begin()
    for _ in range(beat.total):
        batch = next(batches)
        ids, labels = (tensor.to(device, non_blocking=True) for tensor in (batch.input_ids, batch.labels))
        with autocast:
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        beat.done()
    beat.losses = [float(loss) for loss in losses]


def trainer(order: dict[str, Any], size: Size, beat: Metronome) -> None:
    """Train by transformers' Trainer: fused AdamW, clipping, no evaluation, no saving, logging once at the end."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Beating(TrainerCallback):
        """Calls the metronome."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            """Begin."""
            beat.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            """Note a step."""
            beat.done()

    class Rows(torch.utils.data.IterableDataset[Any]):
        """The same rows in the same order, as Trainer takes them."""

        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            for batch in batches_of(order, size):
                yield from ({"input_ids": a, "labels": b} for a, b in zip(batch.input_ids, batch.labels, strict=True))

    flags, cuda = order["flags"], torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=order["save_dir"],
        max_steps=beat.total,
        per_device_train_batch_size=order["rows"],
        learning_rate=1e-4,
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=order["precision"] == "bf16",
        use_cpu=not cuda,
        gradient_checkpointing="recompute" in flags,
        use_liger_kernel="liger" in flags,
        torch_compile="compile" in flags,
        save_strategy="no",
        report_to="none",
        logging_steps=beat.total,
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
        seed=3,
    )
    model = _model(order, torch.device("cuda" if cuda else "cpu"))
    training = Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Beating()])
    training.train()
    beat.losses = [entry["loss"] for entry in training.state.log_history if "loss" in entry]


def _model(order: dict[str, Any], device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    # fp32 weights, as masters are in ours; autocast computes in bf16
    return AutoModelForCausalLM.from_pretrained(order["model_dir"], dtype=torch.float32, attn_implementation="sdpa").to(
        device
    )


CONTENDERS = {"ours": ours, "plain": plain, "trainer": trainer}


def main() -> None:
    """Do what the order says."""
    order = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing else may speak on the channel of the answers
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    beat = Metronome(order, answers)
    CONTENDERS[order["contender"]](order, SIZES[order["size"]], beat)
    from colossal_llama2.engine.ranks import peak_memory

    beat.tell(finished=True, steps=beat.steps, losses=beat.losses, peak_memory=peak_memory(), waits=beat.waits)
    os._exit(0)  # what is left is to be taken down by nobody


if __name__ == "__main__":
    main()
