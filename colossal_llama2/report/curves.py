"""Curves as PNG files: the loss of runs one after the other, and measures of models over training time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import read_jsonl
from colossal_llama2.outputs import whole_file

METRICS_FILE = "metrics.jsonl"

# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Run:
    """The metrics of one training run.

    Attributes:
        name: as it stands in a legend.
        steps: the step numbers.
        losses: loss of each step, in nats per learned token.
        seconds: wall time of each step.
    """

    name: str
    steps: list[int]
    losses: list[float]
    seconds: list[float]


@dataclass(frozen=True)
class Line:
    """A model's way through training.

    Attributes:
        name: as it stands in a legend.
        minutes: training time at each point.
        values: what was measured there.
        labels: what the points are, or nothing to leave them unnamed.
    """

    name: str
    minutes: Sequence[float]
    values: Sequence[float]
    labels: Sequence[str] = ()


def read_run(name: str, run_dir: Path) -> Run:
    """Read a run folder's metrics; steps without a loss (nothing to learn, overflow) are left out of the curve.

    Raises:
        InputError: there are none, or a line is not a step's.
    """
    path = run_dir / METRICS_FILE
    steps, losses, seconds = [], [], []
    for line, record in read_jsonl(path):
        try:
            step, loss, took = int(record["step"]), record["loss"], float(record["seconds"])
        except (KeyError, TypeError, ValueError):
            raise InputError("not a step's metrics", path=path, line=line, remedy="name a run's own folder") from None
        seconds.append(took)
        if isinstance(loss, (int, float)):
            steps.append(step)
            losses.append(float(loss))
    if not steps:
        raise InputError("holds no step", path=path, remedy="train first")
    return Run(name, steps, losses, seconds)


def draw_losses(panels: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Draw the loss over steps, a panel a title, the runs of a panel one after the other.

    Losses per token of different vocabularies do not compare: give them panels of their own.

    Args:
        panels: title to runs in the order they ran.
        path: the PNG file, replaced if it exists.
    """
    figure, axes = _panels(len(panels))
    for axis, (title, runs) in zip(axes, panels.items(), strict=True):
        done = 0
        for colour, run in zip(_COLOURS, runs, strict=False):
            axis.plot([done + step for step in run.steps], run.losses, color=colour, linewidth=0.8, alpha=0.35)
            smooth = smoothed(run.losses)
            axis.plot([done + step for step in run.steps], smooth, color=colour, linewidth=2, label=run.name)
            done += run.steps[-1]
            if run is not runs[-1]:
                axis.axvline(done + 0.5, color="0.75", linewidth=1, linestyle=":")
        axis.set(title=title, xlabel="optimizer step", ylabel="loss (nats per learned token)")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    _save(figure, path)


def draw_measures(panels: Mapping[str, Sequence[Line]], ylabel: str, path: Path) -> None:
    """Draw measures over training time, a panel a title, on a logarithmic scale where they differ by more than four.

    Args:
        panels: title to lines.
        ylabel: what is measured, with its unit.
        path: the PNG file, replaced if it exists.
    """
    figure, axes = _panels(len(panels))
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for colour, marker, line in zip(_COLOURS, "osD^v*x", lines, strict=False):
            axis.plot(line.minutes, line.values, color=colour, marker=marker, linewidth=2, label=line.name)
            for index, (x, y, label) in enumerate(zip(line.minutes, line.values, line.labels, strict=False)):
                # Above and below in turn: points that lie close together would write over each other.
                place = (5, 7) if index % 2 else (5, -13)
                axis.annotate(label, (x, y), xytext=place, textcoords="offset points", fontsize=8, color=colour)
        values = [value for line in lines for value in line.values]
        _scale(axis, min(values), max(values))
        axis.set(title=title, xlabel="training time (minutes)", ylabel=ylabel)
        longest = max(minute for line in lines for minute in line.minutes)
        axis.set_xlim(-0.04 * longest, 1.16 * longest)
        axis.legend(frameon=False)
    _save(figure, path)


def draw_bars(
    panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], labels: Sequence[str], ylabel: str, path: Path
) -> None:
    """Draw groups of bars, a panel a title: each bar the mean of its values, the values themselves as dots.

    Args:
        panels: title to groups; a group's name to the values of each of its bars, of one bar at least.
        labels: what the first, the second ... bar of a group is.
        ylabel: what is measured, with its unit.
        path: the PNG file, replaced if it exists.
    """
    figure, axes = _panels(len(panels))
    width = 0.8 / len(labels)
    for axis, (title, groups) in zip(axes, panels.items(), strict=True):
        for index, label in enumerate(labels):
            here = [(place, values[index]) for place, values in enumerate(groups.values()) if len(values) > index]
            at = [place + (index - (len(labels) - 1) / 2) * width for place, _ in here]
            means = [sum(values) / len(values) for _, values in here]
            drawn = axis.bar(at, means, 0.92 * width, color=_COLOURS[index], label=label)
            axis.bar_label(drawn, fmt="%.2f", fontsize=8, padding=2)
            dots = [(x, value) for x, (_, values) in zip(at, here, strict=True) for value in values if len(values) > 1]
            axis.plot([x for x, _ in dots], [value for _, value in dots], ".", color="0.2", markersize=4)
        axis.set_xticks(range(len(groups)), list(groups), rotation=20, ha="right")
        axis.set(title=title, ylabel=ylabel)
        axis.legend(frameon=False)
    _save(figure, path)


def smoothed(values: Sequence[float], memory: float = 0.9) -> list[float]:
    """Average exponentially, unbiased at the beginning: what came n values before counts ``memory ** n`` as much."""
    averages, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = memory * total + value, memory * weight + 1.0
        averages.append(total / weight)
    return averages


def _panels(count: int) -> tuple[Any, Any]:
    figure, axes = plt.subplots(1, count, figsize=(5.6 * count, 4.2), squeeze=False, layout="constrained")
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
    return figure, axes[0]


def _scale(axis: Any, lowest: float, highest: float) -> None:
    if lowest > 0 and highest > 4 * lowest:
        axis.set_yscale("log")
        axis.set_ylim(lowest * 0.75, highest * 1.35)
        axis.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        margin = max(highest - lowest, 0.1 * highest)
        axis.set_ylim(max(0.0, lowest - margin), highest + margin)


def _save(figure: Any, path: Path) -> None:
    with whole_file(path, overwrite=True) as work:
        figure.savefig(work, dpi=150, format="png")
    plt.close(figure)
