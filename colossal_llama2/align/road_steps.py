"""The steps of a road, with everything that each is told and what it needs of the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama2.align.road_kinds import Kind
from colossal_llama2.engine.nodes.launch import LaunchSettings
from colossal_llama2.errors import InputError
from colossal_llama2.train.checkpoints import ADAPTER


@dataclass(frozen=True)
class Step:
    """A step with everything that it is told.

    Attributes:
        name: its title.
        kind: what it is.
        settings: of its command.
        arguments: the command line that makes them.
        launch: where a stage is started, None for a tool.
        folder: everything that it writes.
        made: what later steps take from it.
        needs: names of the steps whose output it reads.
        weights: what its weights come from, for people; empty where it has none.
        line: where it begins.
        lines: where each of its settings stands, inherited ones in the head.
    """

    name: str
    kind: Kind
    settings: Any
    arguments: tuple[str, ...]
    launch: LaunchSettings | None
    folder: Path
    made: Path
    needs: tuple[str, ...]
    weights: str
    line: int
    lines: Mapping[str, int]

    @property
    def whole(self) -> Path:
        """File that is there when the step is done."""
        if self.kind.whole is not None:
            return self.folder / self.kind.whole
        return self.made / ("adapter_config.json" if self.made.name == ADAPTER else "config.json")

    def located(self, error: InputError, path: Path) -> InputError:
        """Return a complaint about this step's settings with the line of the one it is about."""
        return located(error, path, self.line, self.lines)


@dataclass(frozen=True)
class Road:
    """Everything that is to be done.

    Attributes:
        path: the file.
        road_dir: what everything is written below.
        steps: in their order.
    """

    path: Path
    road_dir: Path
    steps: tuple[Step, ...]

    def made_from(self, names: Iterable[str]) -> frozenset[str]:
        """Return these steps and all that read what they make, however far down the road."""
        found = set(names)
        for step in self.steps:  # a step needs earlier ones alone
            if found.intersection(step.needs):
                found.add(step.name)
        return frozenset(found)


def located(
    error: InputError, path: Path, line: int, lines: Mapping[str, int], values: Mapping[str, str] | None = None
) -> InputError:
    """Return a command's complaint with the place in the road of the setting it is about.

    Args:
        error: the complaint.
        path: the road's file.
        line: of the step, for a complaint that names no setting.
        lines: of its settings.
        values: of its settings, by which one is found that the complaint quotes and does not name.
    """
    named = [name for name in re.findall(r"--(?:no_)?([a-z0-9_]+)", error.what) if name in lines]
    if not named and (stray := re.search(r"unrecognized options?: (.*)", error.what)):
        words = stray[1].split()
        named = [name for name, value in (values or {}).items() if value and value.split()[-1] in words]
    what = error.what if error.path is None else f"{error.path}: {error.what}"
    return InputError(what, path=path, line=lines[named[0]] if named else line, remedy=error.remedy)
