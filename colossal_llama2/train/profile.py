"""`--profile N`: what a few steps do with their time, as a trace to look at and as a table of a few lines."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from colossal_llama2 import cli
from colossal_llama2.engine import ranks
from colossal_llama2.engine.named_ranges import HEAD_AND_LOSS, OPTIMIZER
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import whole_file
from colossal_llama2.train.settings import StageSettings

WARM_UP_STEPS = 3
"""Steps before the first that is recorded: kernels are chosen, memory is reserved and buffers are filled in them."""
DATA_WAIT = "waiting for rows"
PROFILE_DIR = "profile"
KINDS = ("attention", "matmul", "head and loss", "optimizer", "communication", "waiting for rows", "other")
_COMMUNICATION = ("c10d::", "nccl", "gloo:", "all_reduce", "allreduce", "all_gather", "allgather", "reduce_scatter")
_ATTENTION = ("attention", "flash", "varlen", "fmha", "attn")
_MATMUL = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::matmul", "aten::_scaled_mm", "gemm")


class StepProfiler:
    """Records steps on one rank, after a few that warm up; made by every rank.

    Args:
        folder: where the traces and tables go.
        num_steps: how many steps are recorded.
        first_step: steps done when the run starts.
    """

    def __init__(self, folder: Path, num_steps: int, first_step: int) -> None:
        self._folder, self._num_steps = folder, num_steps
        self._begins = first_step + WARM_UP_STEPS
        self._profile: Any = None

    def after_step(self, step: int) -> None:
        """Take note of a step that was given to the device: begin to record after it, or end."""
        if step == self._begins:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # what was queued before does not belong to what is recorded
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.start()
        elif step == self._begins + self._num_steps:
            self.close()

    def close(self) -> None:
        """End recording and write what there is."""
        recorded, self._profile = self._profile, None
        if recorded is None:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        recorded.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / f"rank-{ranks.rank()}.json.gz"
        table = self._folder / f"rank-{ranks.rank()}.txt"
        _write_trace(recorded, trace)
        text = describe(seconds_by_kind(recorded.events()), self._num_steps)
        with whole_file(table, overwrite=True) as work:
            work.write_text(text, encoding="utf-8")
        cli.say(
            f"profile of {self._num_steps} steps: {trace} (for ui.perfetto.dev or chrome://tracing)\n{text.rstrip()}"
        )


def profiler_of(settings: StageSettings, first_step: int, total_steps: int) -> StepProfiler | None:
    """Make what records a run's steps, if it was asked for.

    Raises:
        InputError: the run has too few steps for it.
    """
    num_steps = settings.output.profile
    if not num_steps:
        return None
    left = total_steps - first_step
    if left < WARM_UP_STEPS + num_steps:
        raise InputError(
            f"--profile {num_steps} records after {WARM_UP_STEPS} steps, and the run has {left} steps left",
            remedy="record fewer steps, or pass a larger --max_steps",
        )
    return StepProfiler(settings.run_dir / PROFILE_DIR, num_steps, first_step)


def seconds_by_kind(events: Iterable[Any]) -> dict[str, float]:
    """Add up the time of torch's profiler events by what it went to.

    On CUDA it is the kernels' time, each by the operation that launched it; without, the operations' own time on the
    host, what they call left out. A backward operation belongs to where its forward one was (torch numbers both alike).

    Returns:
        Seconds by the names in `KINDS`.
    """
    events = list(events)
    on_device = any(_kernel_time(event) for event in events)
    of_head = {
        event.sequence_nr for event in events if event.sequence_nr >= 0 and _enclosed_by(event, (HEAD_AND_LOSS,))
    }
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in events:
        if event.name == DATA_WAIT:
            seconds["waiting for rows"] += event.self_cpu_time_total / 1e6
            continue
        own = _kernel_time(event) if on_device else event.self_cpu_time_total
        if own > 0:
            seconds[_kind(event, of_head)] += own / 1e6
    return seconds


def describe(seconds: dict[str, float], num_steps: int) -> str:
    """Write a table, the longest first: milliseconds a step, and shares of what was added up."""
    total = sum(seconds.values()) or 1.0
    lines = [f"{'where the time went':20} {'ms a step':>10} {'share':>7}"]
    for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
        lines.append(f"{name:20} {value / num_steps * 1e3:10.2f} {value / total:7.1%}")
    return "\n".join(lines) + "\n"


def _kind(event: Any, of_head: set[int]) -> str:
    chain = list(_lineage(event))
    names = [link.name for link in chain]
    if _any_in(names, _COMMUNICATION):
        return "communication"
    if OPTIMIZER in names or _any_in(names, ("fused_adam",)):
        return "optimizer"
    if HEAD_AND_LOSS in names or any(link.sequence_nr in of_head for link in chain if link.sequence_nr >= 0):
        return "head and loss"
    if _any_in(names, _ATTENTION):
        return "attention"
    return "matmul" if _any_in(names[:2], _MATMUL) else "other"


def _any_in(names: Sequence[str], parts: Sequence[str]) -> bool:
    return any(part in name.lower() for name in names for part in parts)


def _lineage(event: Any) -> Iterable[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _enclosed_by(event: Any, names: tuple[str, ...]) -> bool:
    return any(link.name in names for link in _lineage(event))


def _kernel_time(event: Any) -> float:
    """Time of the kernels that an operation itself launched, in microseconds."""
    return float(sum(kernel.duration for kernel in event.kernels))


def _write_trace(recorded: Any, path: Path) -> None:
    with whole_file(path, overwrite=True) as work:
        plain = work.with_suffix(".json")
        recorded.export_chrome_trace(str(plain))
        with plain.open("rb") as read, gzip.open(work, "wb", compresslevel=4) as packed:
            shutil.copyfileobj(read, packed)
        plain.unlink()
