"""From what is written to steps that can be run: inheritance, hand-over, settings typed as flags are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from colossal_llama2 import cli
from colossal_llama2.align.road_file import Entry, RoadFile, WrittenStep
from colossal_llama2.align.road_kinds import TOOLS, Kind, Thing, kinds, launch_flags, names_paths, stages
from colossal_llama2.align.road_steps import Road, Step, located
from colossal_llama2.engine.nodes.launch import LaunchSettings
from colossal_llama2.errors import InputError
from colossal_llama2.train.checkpoints import ADAPTER, MODELING

_ROAD_DIR: Final = "road_dir"
_FROM: Final = "from"
_REFERENCE = re.compile(r"(?:^|(?<=,))\s*\$([A-Za-z0-9_-]+)")
_WHOLE_MODELS: Final = ("pretrained", "reward_model", "critic", "teacher", "source_model_and_tokenizer_path")
_MAKERS: Final[dict[Thing, str]] = {
    "pieces": "a step of `tool: mine_pieces`",
    "tokenizer": "`pretrained:` in the head",
    "model": "`pretrained:` in the head",
    "scorer": "a step of `stage: reward`",
}


def resolve(file: RoadFile) -> Road:
    """Give every step its settings.

    Raises:
        InputError: an unknown kind or setting, a value of another type, a step that takes what is not made before it;
            the message names the line.
    """
    _check_head(file)
    road_dir = Path(file.head[_ROAD_DIR].value)
    resolver = _Resolver(file, road_dir)
    return Road(file.path, road_dir, tuple(resolver.resolve(written) for written in file.steps))


def _check_head(file: RoadFile) -> None:
    for step in file.steps:
        if step.kind not in (known := kinds(step.is_tool)):
            what = "tool" if step.is_tool else "stage"
            raise InputError(
                f"there is no {what} {step.kind!r}", path=file.path, line=step.kind_line, remedy=_near(step.kind, known)
            )
    if _ROAD_DIR not in file.head or not file.head[_ROAD_DIR].value:
        raise InputError("has no `road_dir:`", path=file.path, remedy="name the folder that everything is written to")
    if "pretrained" in file.head and not file.head["pretrained"].value:
        raise InputError("names no folder", path=file.path, line=file.head["pretrained"].line)
    used = [kinds(step.is_tool)[step.kind] for step in file.steps]
    everything = {**TOOLS, **stages()}.values()
    for name, entry in file.head.items():
        if name in (_ROAD_DIR, "pretrained") or name in launch_flags():
            continue
        if any(name in kind.own for kind in everything):
            _refuse_own(name, file.path, entry.line)
        if not any(name in kind.flags for kind in everything):
            names = {flag for kind in used for flag in kind.flags} | launch_flags() | {_ROAD_DIR, "prepare", "stages"}
            raise InputError(f"unknown setting {name!r}", path=file.path, line=entry.line, remedy=_near(name, names))
        if not any(name in kind.flags for kind in used):
            raise InputError(f"no step of this road has {name}", path=file.path, line=entry.line, remedy="leave it out")


@dataclass
class _Made:
    """What has been made so far: the last of each thing, and every step's."""

    last: dict[Thing, tuple[Path, str]] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)


class _Resolver:
    """Goes through a file's steps once, in order."""

    def __init__(self, file: RoadFile, road_dir: Path) -> None:
        self._file, self._road_dir = file, road_dir
        self._made = _Made()
        if "pretrained" in file.head:
            base = Path(file.head["pretrained"].value)
            self._made.last["model"] = self._made.last["tokenizer"] = base, ""

    def resolve(self, written: WrittenStep) -> Step:
        kind = kinds(written.is_tool)[written.kind]
        self._refuse_unknown(written, kind)
        inherited = {
            name: entry
            for name, entry in self._file.head.items()
            if name != "pretrained" and name not in kind.own and (name in kind.flags or name in launch_flags())
        }
        entries = {**inherited, **{name: entry for name, entry in written.entries.items() if name != _FROM}}
        lines = {name: entry.line for name, entry in entries.items()}
        needs: dict[str, None] = {}
        arguments = dict(self._set_by_road(written, kind))
        for name, (path, maker) in self._handed_over(written, kind, entries):
            arguments[name] = [f"--{name}", str(path)]
            lines[name] = written.entries[_FROM].line if _FROM in written.entries else written.line
            needs |= dict.fromkeys([maker] if maker else [])
        for name, entry in entries.items():
            if name not in kind.flags:
                continue
            arguments[name] = list(entry.arguments)
            if names_paths(kind.flags[name], name):
                arguments[name][1:] = [self._follow(value, written, entry, needs) for value in entry.arguments[1:]]
        settings = self._parse(kind.settings_type, arguments, written, entries)
        launch = None if kind.is_tool else self._launch(written, entries)
        folder = self._road_dir / written.name
        made = self._made_by(kind, settings, folder)
        step = Step(
            name=written.name,
            kind=kind,
            settings=settings,
            arguments=tuple(word for words in arguments.values() for word in words),
            launch=launch,
            folder=folder,
            made=made,
            needs=tuple(needs),
            weights=self._weights(kind, arguments),
            line=written.line,
            lines=lines,
        )
        self._made.steps[step.name] = step
        self._made.last |= dict.fromkeys(kind.makes, (made, step.name))
        return step

    def _refuse_unknown(self, written: WrittenStep, kind: Kind) -> None:
        allowed = set(kind.flags) | ({_FROM} if "model" in kind.takes.values() else set())
        if not kind.is_tool:
            allowed |= launch_flags()
        for name, entry in written.entries.items():
            if name in kind.own:
                _refuse_own(name, self._file.path, entry.line)
            if name not in allowed:
                what = f"{written.kind} has no setting {name!r}"
                raise InputError(what, path=self._file.path, line=entry.line, remedy=_near(name, allowed))
        model_flag = next((name for name, thing in kind.takes.items() if thing == "model"), "")
        if _FROM in written.entries and model_flag in written.entries:
            raise InputError(
                f"both `from` and {model_flag}",
                path=self._file.path,
                line=written.entries[model_flag].line,
                remedy="keep one of them",
            )

    def _set_by_road(self, written: WrittenStep, kind: Kind) -> Iterator[tuple[str, list[str]]]:
        folder = self._road_dir / written.name
        output = folder / kind.whole if kind.whole is not None and kind.makes == ("pieces",) else folder
        yield kind.output, [f"--{kind.output}", str(output)]
        if not kind.is_tool:
            yield "stage", ["--stage", kind.name]
        for name, value in kind.sets.items():
            yield name, [f"--{name}", value.format(road_dir=self._road_dir)]

    def _handed_over(
        self, written: WrittenStep, kind: Kind, entries: Mapping[str, Entry]
    ) -> Iterator[tuple[str, tuple[Path, str]]]:
        """Yield the flags that take what an earlier step made, and what that is."""
        for name, thing in kind.takes.items():
            if name in entries:
                continue
            if thing == "model" and _FROM in written.entries:
                yield name, self._from(written)
                continue
            found = self._made.last.get(thing)
            if thing == "scorer" and (found is None or "reward_function" in entries):
                continue  # the stage itself says when nothing pays
            if found is None:
                raise InputError(
                    f"step {written.name} has no {name}, and nothing before it makes one",
                    path=self._file.path,
                    line=written.line,
                    remedy=f"give it {name}, or the road {_MAKERS[thing]}",
                )
            if found[1]:
                self._refuse_adapter(self._made.steps[found[1]], written.line)
            yield name, found

    def _from(self, written: WrittenStep) -> tuple[Path, str]:
        entry = written.entries[_FROM]
        step = self._earlier(entry.value.removeprefix("$"), entry, written)
        if "model" not in step.kind.makes:
            raise InputError(
                f"step {step.name} ({step.kind.name}) makes no language model",
                path=self._file.path,
                line=entry.line,
                remedy="name a step that does",
            )
        self._refuse_adapter(step, entry.line)
        return step.made, step.name

    def _follow(self, value: str, written: WrittenStep, entry: Entry, needs: dict[str, None]) -> str:
        """Put what earlier steps made in the places of ``$NAME``."""

        def made(match: re.Match[str]) -> str:
            step = self._earlier(match[1], entry, written)
            if entry.name in _WHOLE_MODELS:
                self._refuse_adapter(step, entry.line)
            needs[step.name] = None
            return str(step.made)

        return _REFERENCE.sub(made, value)

    def _earlier(self, name: str, entry: Entry, written: WrittenStep) -> Step:
        if name in self._made.steps:
            return self._made.steps[name]
        later = any(step.name == name for step in self._file.steps)
        what = "itself" if name == written.name else f"{name}, which comes later" if later else f"{name!r}, no step"
        remedy = "name an earlier step" if later else _near(name, self._made.steps)
        raise InputError(
            f"step {written.name} names {what} of this road" if not later else f"step {written.name} names {what}",
            path=self._file.path,
            line=entry.line,
            remedy=remedy,
        )

    def _refuse_adapter(self, step: Step, line: int) -> None:
        if step.made.name == ADAPTER:
            merged = f"write `lora_merge: true` there (line {step.line})"
            raise InputError(
                f"what step {step.name} makes is an adapter (lora_rank), and this step asks for a whole model",
                path=self._file.path,
                line=line,
                remedy=merged if "model" in step.kind.makes else f"leave lora_rank out there (line {step.line})",
            )

    def _parse(
        self, settings_type: type[Any], arguments: Mapping[str, list[str]], written: WrittenStep, entries: Any
    ) -> Any:
        lines = {name: entry.line for name, entry in entries.items()}
        values = {name: entry.value for name, entry in entries.items()}
        try:
            return cli.parse(settings_type, [word for words in arguments.values() for word in words])
        except InputError as error:
            raise located(error, self._file.path, written.line, lines, values) from None

    def _launch(self, written: WrittenStep, entries: Mapping[str, Entry]) -> LaunchSettings:
        arguments = {name: list(entry.arguments) for name, entry in entries.items() if name in launch_flags()}
        if not {"nproc_per_node", "hostfile"} & set(arguments):
            arguments["nproc_per_node"] = ["--nproc_per_node", "1"]
        settings: LaunchSettings = self._parse(LaunchSettings, arguments, written, entries)
        return settings

    def _made_by(self, kind: Kind, settings: Any, folder: Path) -> Path:
        if kind.is_tool:
            return folder / str(kind.whole) if kind.makes == ("pieces",) else folder
        is_adapter = settings.lora.lora_rank and not settings.lora.lora_merge
        return folder / (ADAPTER if is_adapter else MODELING)

    def _weights(self, kind: Kind, arguments: Mapping[str, list[str]]) -> str:
        taken = [name for name, thing in kind.takes.items() if thing in ("model", "scorer") and name in arguments]
        return ", ".join(f"{name} {arguments[name][1]}" for name in taken)


def _refuse_own(name: str, path: Path, line: int) -> None:
    raise InputError(
        f"{name} is set by the road itself",
        path=path,
        line=line,
        remedy="leave it out: a step writes to ROAD_DIR/NAME, and takes its model from `from`",
    )


def _near(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, 1)
    if close:
        return f"did you mean {close[0]}?"
    return f"choose among {', '.join(names)}" if names and len(names) < 20 else "docs/road.md tells what there is"
