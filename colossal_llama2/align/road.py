"""`train.py --stages FILE.yaml`: the whole road, stage after stage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from colossal_llama2 import cli
from colossal_llama2.align import stages as registry
from colossal_llama2.align.road_checks import Checker
from colossal_llama2.align.road_file import read_road_file
from colossal_llama2.align.road_forecast import Forecast, Pace
from colossal_llama2.align.road_records import locked, look
from colossal_llama2.align.road_resolving import resolve
from colossal_llama2.align.road_steps import Road
from colossal_llama2.align.road_walk import Processes, walk
from colossal_llama2.errors import InputError

_FLAG: Final = "--stages"


@dataclass(frozen=True)
class RoadSettings:
    """Go the whole road that a file describes, a step after the other; what is done already is not done again.

    Start it alone, not under torchrun: every stage gets processes of its own. docs/road.md tells what a file can say.
    """

    stages: Path
    """YAML file: a head of settings that every step inherits, `prepare:` for the tools and `stages:`."""
    dry_run: bool = False
    """Check everything, print what each step will take, and do nothing."""
    redo: tuple[str, ...] = ()
    """Steps to discard and do again, by name; so is everything that is made of them."""
    mfu: float = 0.4
    """Share of the devices' peak that training is assumed to come to, for the times of --dry_run."""
    device_tflops: float | None = None
    """Peak of a device in TFLOP/s, for the times of --dry_run (default: that of the device here)."""
    tokens_per_second: float | None = None
    """Speed of all ranks together, for the times of --dry_run, where it is known."""


def choose(arguments: Sequence[str]) -> cli.Command[Any]:
    """Find out what a command line of `train.py` asks for: a road, or one stage.

    Raises:
        InputError: there is no such stage.
    """
    if any(argument.partition("=")[0] == _FLAG for argument in arguments):
        return cli.Command(RoadSettings, main)
    command = registry.choose(arguments)
    return replace(command, note=f"{command.note}\n{_FLAG} FILE.yaml: several of them in turn ({_FLAG} --help)")


def main(settings: RoadSettings) -> int:
    """Go the road; return 0, the exit code of the step that did not end well, or 128 + N for a signal."""
    _refuse(settings)
    road = read_road(settings.stages)
    known = [step.name for step in road.steps]
    for name in settings.redo:
        if name not in known:
            raise InputError(f"--redo names {name!r}, no step of this road", remedy=f"choose among {', '.join(known)}")
    redo = sorted(road.made_from(settings.redo), key=known.index)
    found = look(road, redo)
    Checker(road, found).check()
    if settings.dry_run:
        pace = Pace(settings.mfu, settings.device_tflops, settings.tokens_per_second)
        for line in Forecast(road, found, pace).lines():
            print(line)
        return 0
    with locked(road):
        return walk(road, look(road, redo), redo, Processes())


def read_road(path: Path) -> Road:
    """Read a road's file and give every step its settings.

    Raises:
        InputError: naming the line of what is wrong.
    """
    return resolve(read_road_file(path))


def _refuse(settings: RoadSettings) -> None:
    if "RANK" in os.environ:
        raise InputError(
            "--stages starts the ranks of every stage itself, and is started under torchrun here",
            remedy="run `python train.py --stages FILE`, with nproc_per_node or hostfile in the file",
        )
    for name in ("mfu", "device_tflops", "tokens_per_second"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name} is {value}", remedy="give a positive number")
    if settings.mfu > 1:
        raise InputError(f"--mfu is {settings.mfu}", remedy="give a share, 0.4 say")
