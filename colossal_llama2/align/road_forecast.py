"""What a road will take, before anything is started: rows, steps, tokens, memory and time of every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from tqdm import tqdm

from colossal_llama2.align.road_records import Found
from colossal_llama2.align.road_sets import Known
from colossal_llama2.align.road_steps import Road, Step
from colossal_llama2.engine.memory_plan import MemoryPlan, describe_predicted
from colossal_llama2.engine.nodes import launch
from colossal_llama2.engine.nodes.remote import ROOT
from colossal_llama2.engine.plan_request import PlanRequest, held_parameters
from colossal_llama2.engine.precision import DTYPES
from colossal_llama2.errors import InputError
from colossal_llama2.model.model_shape import read_model_shape
from colossal_llama2.train.flops import StepFlops, peak_flops
from colossal_llama2.train.plan import predict_run, request_of_run
from colossal_llama2.train.settings import StageSettings

_STATES: Final = {
    "waiting": "to be done",
    "done": "done already",
    "gone": "done already, its output removed since",
    "resume": "was broken off, goes on from its latest checkpoint",
    "again": "was broken off, begins anew",
}
_BESIDE: Final = {"dpo": "reference", "kto": "reference", "distill": "teacher"}


@dataclass(frozen=True)
class Pace:
    """How fast training is assumed to be.

    Attributes:
        mfu: share of the devices' peak that a step comes to.
        device_tflops: a device's peak in TFLOP/s, None for that of the device here.
        tokens_per_second: of all ranks together, in the place of both.
    """

    mfu: float = 0.4
    device_tflops: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Work:
    """How much a stage has to do.

    Attributes:
        rows: of its sets, None as long as they are not there.
        rows_per_step: of a global batch.
        steps: optimizer steps, or the most there can be; None where nothing says.
        tokens: it learns from, or the most there can be.
        row_tokens: of a row on average, or the longest.
        is_exact: the sets are there, so that these are no bounds.
    """

    rows: int | None
    rows_per_step: int
    steps: int | None
    tokens: int | None
    row_tokens: int
    is_exact: bool


@dataclass(frozen=True)
class Forecast:
    """Tells what a road will take.

    Attributes:
        road: it is about.
        found: where its steps stand.
        pace: that is assumed.
    """

    road: Road
    found: Mapping[str, Found]
    pace: Pace

    def lines(self) -> Iterator[str]:
        """Yield the whole account."""
        total, unknown = 0.0, 0
        yield f"{self.road.path}: {len(self.road.steps)} steps, everything below {self.road.road_dir}"
        for number, step in enumerate(self.road.steps, 1):
            found = self.found[step.name]
            took = f" in {_duration(found.seconds)}" if found.state == "done" else ""
            yield f"{number}. {step.name} ({step.kind.name}): {_STATES[found.state]}{took}"
            if step.weights:
                yield _line("weights", step.weights)
            yield _line("makes", str(step.made))
            if found.is_done:
                continue
            lines, seconds = ([], None) if step.launch is None else self._of_stage(step)
            yield from lines
            total, unknown = total + (seconds or 0.0), unknown + (seconds is None)
        steps = f", and {unknown} of unknown length" if unknown else ""
        yield f"time of what can be predicted and is left: {_duration(total)}{steps}"

    @cached_property
    def _known(self) -> Known:
        return Known(self.road, self.found)

    def _of_stage(self, step: Step) -> tuple[list[str], float | None]:
        """Return the lines about a stage, and its seconds if they can be predicted."""
        ranks = self._ranks(step)
        work = self._work(step, ranks)
        bound, less = ("", "") if work.is_exact else ("at most ", " or less")
        rows = "unknown before it is made" if work.rows is None else f"{work.rows:,} rows"
        unit = f"rollouts of {work.rows_per_step} prompts" if _samples(step) else f"steps of {work.rows_per_step} rows"
        steps = "unknown yet" if work.steps is None else f"{bound}{work.steps:,} {unit}"
        lines = [
            _line("data", f"{', '.join(map(str, step.settings.data.dataset))}: {rows}"),
            _line("steps", f"{steps}, on {ranks} {'rank' if ranks == 1 else 'ranks'}"),
        ]
        if _samples(step):
            lines.append(_line("tokens", "as many as the answers have, which nobody knows before"))
            lines.append(_line("memory", "not predicted for several models at once"))
            lines.append(_line("time", "not predicted: most of it is writing answers"))
            return lines, None
        base, remark = self._base(step.settings.model.pretrained)
        seconds, how = self._time(step, base, work, ranks)
        lines.append(_line("tokens", "unknown yet" if work.tokens is None else f"{bound}{work.tokens:,}"))
        lines.append(_line("memory", self._memory(step, base, ranks, remark)))
        lines.append(_line("time", how if seconds is None else f"about {_duration(seconds)}{less} ({how}{remark})"))
        return lines, seconds

    def _ranks(self, step: Step) -> int:
        assert step.launch is not None
        try:
            hosts, nproc = launch.check(step.launch, [str(ROOT / step.kind.script)])
        except InputError as error:
            raise step.located(error, self.road.path) from None
        return len(hosts) * nproc

    def _work(self, step: Step, ranks: int) -> Work:
        settings: Any = step.settings
        data = settings.data
        mesh = settings.plugin_settings.mesh(0, ranks)
        per_step = mesh.data_size * data.micro_batch_size * data.accumulation_steps
        if _samples(step):
            per_step = settings.rollouts.rollout_batch
        sets = [self._known.set(path) for path in data.dataset]
        counted = [found.rows for found in sets if found is not None and found.rows is not None]
        rows = sum(counted) if len(counted) == len(sets) else None
        longest = max([found.max_length for found in sets if found is not None], default=data.max_length)
        if rows is None:
            steps = data.max_steps
            tokens = None if steps is None else steps * per_step * longest
            return Work(None, per_step, steps, tokens, longest, is_exact=False)
        steps = min(-(-rows // per_step) * data.num_epochs, data.max_steps or 1 << 62)
        average = sum(found.tokens or 0 for found in sets if found is not None) / max(rows, 1)
        seen = min(steps * per_step, rows * data.num_epochs)
        return Work(rows, per_step, steps, round(seen * average), round(average), is_exact=True)

    def _base(self, pretrained: Path) -> tuple[Path | None, str]:
        """Return the nearest model that is there and that this one will be made of, with a remark."""
        path, remark = pretrained, ""
        while (maker := self._known.maker(path)) is not None:
            settings = maker.settings
            path = settings.source_model_and_tokenizer_path if maker.kind.is_tool else settings.model.pretrained
            remark = f"; for the size of {path}"
        return (path, remark) if (path / "config.json").is_file() else (None, "")

    def _memory(self, step: Step, base: Path | None, ranks: int, remark: str) -> str:
        if base is None:
            return "unknown: no model is there yet"
        if step.kind.makes == ("scorer",):
            return "not predicted for a model that scores"
        sets = [self._known.set(path) for path in step.settings.data.dataset]
        longest = max([found.max_length for found in sets if found is not None], default=step.settings.data.max_length)
        plan = predict_run(_with_base(step.settings, base), ranks, longest)
        return f"{describe_predicted(plan)}{remark}" if isinstance(plan, MemoryPlan) else f"not predicted: {plan}"

    def _time(self, step: Step, base: Path | None, work: Work, ranks: int) -> tuple[float | None, str]:
        """Return the seconds, and what they are reckoned from."""
        if work.tokens is None:
            return None, "unknown yet"
        if self.pace.tokens_per_second is not None:
            speed = self.pace.tokens_per_second
            return work.tokens / speed, f"at --tokens_per_second {speed:,.0f}, as told"
        if base is None:
            return None, "unknown: no model is there yet"
        try:
            flops = _flops(_with_base(step.settings, base), ranks)
        except InputError as error:
            return None, f"unknown: {error}"
        arithmetic = flops.of(work.row_tokens, [work.row_tokens]) * work.tokens / max(work.row_tokens, 1)
        peak, source = self._peak(step)
        how = f"at {self.pace.mfu:.0%} of {ranks} x {_rate(peak)}, {source}"
        if step.kind.name in _BESIDE:
            how += f"; the {_BESIDE[step.kind.name]}'s passes come on top"
        return arithmetic / (self.pace.mfu * peak * ranks), how

    def _peak(self, step: Step) -> tuple[float, str]:
        if self.pace.device_tflops is not None:
            return self.pace.device_tflops * 1e12, "as told"
        dtype = DTYPES[step.settings.parallel.mixed_precision]
        if dtype not in self._peaks:
            self._peaks[dtype] = peak_flops(torch.device("cuda" if torch.cuda.is_available() else "cpu"), dtype)
        return self._peaks[dtype]

    @cached_property
    def _peaks(self) -> dict[torch.dtype, tuple[float, str]]:
        return {}


def _samples(step: Step) -> bool:
    """Tell whether a stage learns from answers that it writes itself."""
    return hasattr(step.settings, "rollouts")


def _with_base(settings: StageSettings, base: Path) -> StageSettings:
    return replace(settings, model=replace(settings.model, pretrained=base))


def _flops(settings: StageSettings, ranks: int) -> StepFlops:
    """Count a step's arithmetic from the model's shape alone; `step_flops` does so from the model."""
    shape = read_model_shape(settings.model.pretrained)
    training = request_of_run(settings, ranks).training
    held = held_parameters(shape, PlanRequest(training=training), 0)
    matrices = [each for each in held if each.is_matrix and (each.role != "embedding" or shape.tied)]
    return StepFlops(
        matmul_weights=sum(each.numel for each in matrices),
        trained_weights=sum(each.numel for each in matrices if each.trained),
        attention_width=shape.layers * shape.heads * shape.head_dim,
    )


def _line(name: str, text: str) -> str:
    return f"   {name:<9}{text}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else str(tqdm.format_interval(seconds))


def _rate(flops: float) -> str:
    return f"{flops / 1e12:,.0f} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:,.1f} GFLOP/s"
