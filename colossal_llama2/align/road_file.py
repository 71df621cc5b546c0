"""A road as it is written: a head, preparations, stages; every setting still text, with the line it stands on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from colossal_llama2 import cli
from colossal_llama2.errors import InputError

RECORDS: Final = "road"
"""Folder of the road's own records, beside those of its steps."""
CACHE: Final = "cache"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED: Final = (RECORDS, CACHE)


@dataclass(frozen=True)
class Entry:
    """One setting.

    Attributes:
        name: of the flag.
        line: where it stands, from 1.
        arguments: the flag and its values, as on a command line.
    """

    name: str
    line: int
    arguments: tuple[str, ...]

    @property
    def value(self) -> str:
        """What is written behind the name, several values with blanks between them."""
        return " ".join(self.arguments[1:])


@dataclass(frozen=True)
class WrittenStep:
    """One entry of ``prepare`` or ``stages``.

    Attributes:
        name: its title, and its folder's name.
        kind: a tool, or a kind of stage.
        is_tool: which of the two.
        line: where it begins.
        kind_line: where the kind is named.
        entries: its own settings by name; ``from`` is one of them.
    """

    name: str
    kind: str
    is_tool: bool
    line: int
    kind_line: int
    entries: Mapping[str, Entry]


@dataclass(frozen=True)
class RoadFile:
    """A whole file.

    Attributes:
        path: where it lies.
        head: settings that every step inherits, by name.
        steps: preparations, then stages, in their order.
    """

    path: Path
    head: Mapping[str, Entry]
    steps: tuple[WrittenStep, ...]


def read_road_file(path: Path) -> RoadFile:
    """Read a road.

    Raises:
        InputError: it is no road; the message names the line.
    """
    root = cli.compose_yaml(path)
    parts = {} if root is None else _mapping(root, path)
    lists = {name: parts.pop(name) for name in ("prepare", "stages") if name in parts}
    if "stages" not in lists:
        raise InputError("has no `stages:`", path=path, remedy="list them, each with a name and a stage")
    head = {name: _entry(key, value, path) for name, (key, value) in parts.items()}
    steps = [_step(node, path, tools_only=part == "prepare") for part in lists for node in _items(lists[part], path)]
    if not any(not step.is_tool for step in steps):
        raise InputError("names no stage", path=path, line=_line(lists["stages"][0]), remedy="list at least one")
    _refuse_twice(steps, path)
    return RoadFile(path, head, tuple(steps))


def _step(node: yaml.Node, path: Path, tools_only: bool) -> WrittenStep:
    line = _line(node)
    if not isinstance(node, yaml.MappingNode):
        raise InputError("not a step", path=path, line=line, remedy="write `- name: NAME` and its settings below")
    entries = {name: _entry(key, value, path) for name, (key, value) in _mapping(node, path).items()}
    name = entries.pop("name", None)
    if name is None:
        raise InputError("a step without a name", path=path, line=line, remedy="write `name: NAME`")
    if not _NAME.fullmatch(name.value) or name.value in _RESERVED:
        raise InputError(
            f"{name.value!r} cannot be the name of a step",
            path=path,
            line=name.line,
            remedy=f"take letters, digits, - and _, and neither {' nor '.join(_RESERVED)}: a folder is called so",
        )
    kinds = [kind for kind in ("stage", "tool") if kind in entries]
    wanted = "`tool: NAME`" if tools_only else "`stage: KIND` or `tool: NAME`"
    if len(kinds) != 1 or (tools_only and kinds == ["stage"]):
        raise InputError(f"step {name.value} needs one {wanted}", path=path, line=line, remedy="say what it does")
    kind = entries.pop(kinds[0])
    return WrittenStep(name.value, kind.value, kinds == ["tool"], line, kind.line, entries)


def _mapping(node: yaml.MappingNode, path: Path) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        name = str(key.value)
        if name in found:
            first = _line(found[name][0])
            raise InputError(
                f"{name} is set twice, first in line {first}", path=path, line=_line(key), remedy="keep one of them"
            )
        found[name] = key, value
    return found


def _entry(key: yaml.Node, value: yaml.Node, path: Path) -> Entry:
    return Entry(str(key.value), _line(key), tuple(cli.yaml_flag(str(key.value), value, path, _line(key))))


def _items(pair: tuple[yaml.Node, yaml.Node], path: Path) -> list[yaml.Node]:
    key, value = pair
    if not isinstance(value, yaml.SequenceNode):
        raise InputError(f"{key.value} is not a list", path=path, line=_line(key), remedy="begin each step with a dash")
    return list(value.value)


def _refuse_twice(steps: Iterable[WrittenStep], path: Path) -> None:
    seen: dict[str, int] = {}
    for step in steps:
        if step.name in seen:
            raise InputError(
                f"the name {step.name} is taken in line {seen[step.name]}",
                path=path,
                line=step.line,
                remedy="give every step a name of its own",
            )
        seen[step.name] = step.line


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
