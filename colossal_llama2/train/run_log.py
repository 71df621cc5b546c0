"""What a run tells while it runs: metrics.jsonl, TensorBoard, a progress bar or a line now and then."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from colossal_llama2 import cli
from colossal_llama2.outputs import whole_file

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class StepMetrics:
    """One line of metrics.jsonl.

    Attributes:
        step: optimizer steps done.
        epoch: epoch of the step's rows, from 0.
        tokens: tokens trained on so far.
        learned_tokens: labels of this step that are learned, over all ranks.
        loss: mean over them, or over what else the stage counts (`Stage.count`), in nats.
        grad_norm: before clipping; None where half-precision gradients overflowed, which JSON cannot say.
        lr: learning rate of the step.
        tokens_per_second: of all ranks together.
        mfu: model FLOP utilisation, a share.
        memory: peak so far on the first rank, in bytes: allocated on CUDA, resident on a CPU.
        seconds: wall time of the step.
        data_seconds: time of it spent waiting for rows.
        skipped: True when the weights were left alone (overflow, or nothing to learn).
        new_rows: figures of the new rows, in the lines of steps that report on them.
        figures: the stage's own, and those of an evaluation (``eval_loss`` ...) in the lines of steps that made one;
            each stands in the line under its own name.
        samples: what a model wrote, in the lines of steps that show some.
    """

    step: int
    epoch: int
    tokens: int
    learned_tokens: int
    loss: float
    grad_norm: float | None
    lr: float
    tokens_per_second: float
    mfu: float
    memory: int
    seconds: float
    data_seconds: float
    skipped: bool
    new_rows: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float | None] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)


class RunLog:
    """Writes a run's metrics. Only the first rank makes one.

    Args:
        run_dir: folder of metrics.jsonl and the TensorBoard events.
        first_step: steps done already; lines after them, of a continuation that was lost, are removed.
        total_steps: steps of the whole run.
        interval: steps between printed lines where there is no terminal.
    """

    def __init__(self, run_dir: Path, first_step: int, total_steps: int, interval: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / METRICS_FILE
        kept = _lines_up_to(path, first_step)
        with whole_file(path, overwrite=True) as work:
            work.write_text("".join(kept), encoding="utf-8")
        self._file = _Lines(path)
        self._events: Any = SummaryWriter(str(run_dir), purge_step=first_step + 1)
        self._bar = tqdm(initial=first_step, total=total_steps, unit="step", disable=not sys.stderr.isatty())
        self._interval, self._total, self._first = interval, total_steps, first_step
        self._started = time.perf_counter()

    def step(self, metrics: StepMetrics) -> None:
        """Write one step everywhere; a figure that is not a number is null, which JSON has no other word for."""
        metrics = replace(metrics, figures=_finite(metrics))
        line = asdict(metrics)
        for name in ("new_rows", "samples"):
            if not line[name]:
                del line[name]
        line |= line.pop("figures")
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._write_events(metrics)
        self._bar.set_postfix_str(f"loss {metrics.loss:.4f}, {metrics.tokens_per_second:,.0f} tokens/s")
        self._bar.update(1)
        if self._bar.disable and (metrics.step % self._interval == 0 or metrics.step in (self._first + 1, self._total)):
            self._print(metrics)
        evaluated = [f"{name} {_shown(value)}" for name, value in metrics.figures.items() if name.startswith("eval_")]
        if evaluated:
            self._bar.write(f"step {metrics.step}: {', '.join(evaluated)}", file=sys.stdout)
            sys.stdout.flush()

    def remark(self, step: int, line: str, texts: Mapping[str, str]) -> None:
        """Print a line about a step, and give TensorBoard texts by their tags."""
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()
        for tag, text in texts.items():
            self._event("text", tag, text, step)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._events is not None:
            self._events.close()
        self._bar.close()

    def _write_events(self, metrics: StepMetrics) -> None:
        for name in ("loss", "grad_norm", "lr", "tokens_per_second", "mfu", "memory"):
            self._event("scalar", f"train/{name}", getattr(metrics, name), metrics.step)
        for name, value in _flat(metrics.new_rows):
            self._event("scalar", f"new_rows/{name}", value, metrics.step)
        for name, value in metrics.figures.items():
            evaluated = name.startswith("eval_")
            tag = f"eval/{name.removeprefix('eval_')}" if evaluated else f"train/{name}"
            self._event("scalar", tag, value, metrics.step)

    def _event(self, kind: str, tag: str, value: Any, step: int) -> None:
        if value is None or self._events is None:
            return
        try:
            getattr(self._events, f"add_{kind}")(tag, value, step)
        except OSError as error:  # raised by TensorBoard's thread, which is gone after that
            cli.warn(f"no more TensorBoard events: {error}; metrics.jsonl goes on")
            self._events = None

    def _print(self, metrics: StepMetrics) -> None:
        seconds_per_step = (time.perf_counter() - self._started) / (metrics.step - self._first)
        remaining = (self._total - metrics.step) * seconds_per_step
        print(
            f"step {metrics.step}/{self._total}  loss {metrics.loss:.4f}  lr {metrics.lr:.2e}  "
            f"grad norm {'overflow' if metrics.grad_norm is None else format(metrics.grad_norm, '.3f')}  "
            f"{metrics.tokens_per_second:,.0f} tokens/s  {tqdm.format_interval(remaining)} left",
            flush=True,
        )


class _Lines:
    """Lines added to a file. While the disk is full they wait in memory: a run does not end over its log."""

    def __init__(self, path: Path) -> None:
        self._path, self._waiting, self._complained = path, b"", False
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, line: str) -> None:
        self._waiting += line.encode()
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._descriptor, self._waiting) :]
            self._complained = False
        except OSError as error:
            if not self._complained:
                cli.warn(f"{self._path} cannot be written ({error.strerror}): its lines wait in memory")
            self._complained = True

    def close(self) -> None:
        self.write("")
        if self._waiting:
            cli.warn(f"{self._path} lacks its last {len(self._waiting)} bytes")
        os.close(self._descriptor)


def _finite(metrics: StepMetrics) -> dict[str, float | None]:
    """Return a step's own figures, and say which of them are not numbers."""
    wrong = [name for name, value in metrics.figures.items() if value is not None and not math.isfinite(value)]
    for name in wrong:
        cli.warn(f"step {metrics.step}: {name} is {metrics.figures[name]}; written as null")
    return {**metrics.figures, **dict.fromkeys(wrong)}


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the figures by TensorBoard's names, groups in front."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _lines_up_to(path: Path, step: int) -> list[str]:
    """Return the lines of steps that are not going to be repeated; a line torn by a kill is not one of them."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept
