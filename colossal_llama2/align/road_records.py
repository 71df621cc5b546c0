"""What is done already: a record of every step that was begun, and what it says beside the road as it is now."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from colossal_llama2.align.road_file import RECORDS
from colossal_llama2.align.road_steps import Road, Step
from colossal_llama2.engine.checkpoint_folders import whole_checkpoints
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import whole_file

State = Literal["waiting", "done", "gone", "resume", "again"]
VERSION: Final = 1
# Settings that a step may be gone on with under other values: its outcome is the same but for rounding.
_FREE: Final = frozenset(
    {
        *("save_interval", "keep_checkpoints", "async_save", "log_interval", "tensorboard_dir", "num_workers"),
        *("encoder", "executor", "ray_address", "data_cache_dir", "data_jsonl_output_dir", "stage", "overwrite"),
        *("load_checkpoint", "config_file", "use_grad_checkpoint", "use_flash_attn", "fused_kernels", "compile"),
        *("checkpoint_layers", "activation_budget", "offload_fraction", "profile"),
    }
)


@dataclass(frozen=True)
class Found:
    """Where a step stands.

    Attributes:
        state: ``waiting`` for its turn; ``done``; ``gone``, done with its output removed since, and nobody needs it;
            broken off, to ``resume`` from a checkpoint or to begin ``again``.
        seconds: it took, where it is done.
    """

    state: State
    seconds: float = 0.0

    @property
    def is_done(self) -> bool:
        """There is nothing to do."""
        return self.state in ("done", "gone")


def look(road: Road, redo: Collection[str] = ()) -> dict[str, Found]:
    """Find out where every step stands; changes nothing.

    Args:
        road: as it is now.
        redo: steps that are to be done again, and so is what is made of them.

    Raises:
        InputError: a step was begun with other settings than it has now, or its folder holds something that no road
            put there.
    """
    again = road.made_from(redo)
    found = {step.name: Found("waiting") if step.name in again else _look_at(road, step) for step in road.steps}
    needed: set[str] = set()
    for step in reversed(road.steps):
        if found[step.name].state == "gone" and step.name in needed:
            found[step.name] = Found("again")
        if not found[step.name].is_done:
            needed.update(step.needs)
    return found


def discard(road: Road, step: Step) -> None:
    """Remove a step's record and everything that it wrote."""
    _record_file(road, step).unlink(missing_ok=True)
    if step.folder.exists():
        aside = step.folder.with_name(f".{step.name}.removed-{os.getpid()}")
        step.folder.rename(aside)  # half of it must not look whole if this is broken off
        shutil.rmtree(aside)


def note(road: Road, step: Step, state: Literal["begun", "done"], seconds: float = 0.0) -> None:
    """Write down that a step was begun, or is done and how many seconds that took."""
    content = {"version": VERSION, "state": state, "seconds": round(seconds, 1), "settings": deciding(road, step)}
    with whole_file(_record_file(road, step), overwrite=True) as work:
        work.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def locked(road: Road) -> Iterator[None]:
    """Keep other roads of this machine out of the folder.

    Raises:
        InputError: another one is at work in it.
    """
    folder = road.road_dir / RECORDS
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError("another road is at work here", path=road.road_dir, remedy="wait for its end") from None
        yield


def deciding(road: Road, step: Step) -> dict[str, Any]:
    """Return the settings that decide what comes out of a step; paths inside the road are relative to it."""
    left_out = _FREE | step.kind.own
    flat = {name: value for name, value in _flat(step.settings) if name not in left_out}
    return {"kind": step.kind.name, **{name: _plain(value, road.road_dir) for name, value in flat.items()}}


def _look_at(road: Road, step: Step) -> Found:
    record = _read(_record_file(road, step))
    if record is None:
        if step.folder.exists() and (not step.folder.is_dir() or any(step.folder.iterdir())):
            raise InputError(
                f"step {step.name} would write to {step.folder}, where something lies that this road did not put there",
                path=road.path,
                line=step.line,
                remedy=f"choose another name or road_dir, or discard it with --redo {step.name}",
            )
        return Found("waiting")
    _refuse_changed(road, step, record["settings"])
    if step.whole.is_file():
        return Found("done", record["seconds"])
    if record["state"] == "done":
        return Found("gone", record["seconds"])
    resumes = not step.kind.is_tool and bool(whole_checkpoints(step.folder))
    return Found("resume" if resumes else "again")


def _refuse_changed(road: Road, step: Step, then: Mapping[str, Any]) -> None:
    now = deciding(road, step)
    changed = [name for name in (*now, *then) if now.get(name) != then.get(name)]
    if changed:
        name = changed[0]
        raise InputError(
            f"step {step.name} was begun with {name} {_shown(then.get(name))}, and now it is {_shown(now.get(name))}",
            path=road.path,
            line=step.lines.get(name, step.line),
            remedy=f"put it back, or discard what was made and do it and all that is made of it again: "
            f"--redo {step.name}",
        )


def _shown(value: Any) -> str:
    return "not set" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _record_file(road: Road, step: Step) -> Path:
    return road.road_dir / RECORDS / f"{step.name}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(
            f"not a road's record ({error})", path=path, remedy="remove it to begin the step anew"
        ) from None
    if content.get("version") != VERSION:
        raise InputError(
            f"has version {content.get('version')}, and this is version {VERSION}",
            path=path,
            remedy="choose another road_dir",
        )
    return content


def _flat(settings: Any) -> Iterator[tuple[str, Any]]:
    for each in dataclasses.fields(settings):
        value = getattr(settings, each.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value)
        else:
            yield each.name, value


def _plain(value: Any, road_dir: Path) -> Any:
    """Return a value as JSON gives it back."""
    if isinstance(value, (tuple, list)):
        return [_plain(item, road_dir) for item in value]
    if isinstance(value, Path):
        inside = value.absolute().is_relative_to(road_dir.absolute())
        return f"road_dir/{value.absolute().relative_to(road_dir.absolute())}" if inside else str(value)
    return value
