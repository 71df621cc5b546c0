"""How `train.py` is started again after a failure: from its last whole checkpoint, never over another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from colossal_llama2.engine.running_state import FILE_NAME

_SCRIPT = "train.py"
_CHECKPOINTS = f"epoch-*_step-*/{FILE_NAME}"
_OTHER_OUTPUT = ("modeling", "adapter", "run/metrics.jsonl")


@dataclass(frozen=True)
class Output:
    """What lay in a run's folders when it was looked at: a checkpoint's state file or another output, and its age."""

    checkpoints: dict[Path, int]
    others: frozenset[Path]

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing of a run is there."""
        return not self.checkpoints and not self.others


class Restarts:
    """Knows what was there before the first start, and what to start with after a failure.

    Args:
        script: the script and its arguments.
        directory: what relative paths start from.
    """

    def __init__(self, script: Sequence[str], directory: Path) -> None:
        self._script = list(script)
        self._directory = directory
        self._before = self._look()

    def command(self) -> tuple[list[str], str]:
        """Return the script and arguments of the next start, and what they mean in a few words.

        A checkpoint written since the first start is continued. Without one, what the failed start left behind must
        give way, or `train.py` would refuse its own folder: it may be discarded when the folder was empty before.
        """
        if self._before is None:
            return list(self._script), "with the same arguments"
        now = self._look()
        assert now is not None
        script = list(self._script)
        if now.checkpoints.items() - self._before.checkpoints.items():
            return set_flag(script, "load_checkpoint", "latest"), f"from {self._newest(now)}"
        if flag_value(script, "load_checkpoint") == "latest":
            return script, "with --load_checkpoint latest, as before"
        if self._before.is_empty and not now.is_empty:
            return [*script, "--overwrite"], "from the beginning: there is no whole checkpoint yet"
        return script, "from the beginning: there is no whole checkpoint yet"

    def _look(self) -> Output | None:
        if Path(self._script[0]).name != _SCRIPT:
            return None
        save_dir = flag_value(self._script, "save_dir")
        if not save_dir:
            return None
        folder = self._directory / save_dir
        run_dir = flag_value(self._script, "tensorboard_dir")
        others = [folder / name for name in _OTHER_OUTPUT]
        if run_dir:
            others.append(self._directory / run_dir / "metrics.jsonl")
        checkpoints = {path: path.stat().st_mtime_ns for path in folder.glob(_CHECKPOINTS)}
        return Output(checkpoints, frozenset(path for path in others if path.exists()))

    @staticmethod
    def _newest(output: Output) -> str:
        return max(output.checkpoints, key=lambda path: int(path.parent.name.rpartition("-")[2])).parent.name


def flag_value(script: Sequence[str], name: str) -> str | None:
    """Return what a script's flag is set to: by the last ``--name VALUE``, or by the file of ``--config``."""
    found = None
    for index, argument in enumerate(script):
        flag, equals, value = argument.partition("=")
        if flag == f"--{name}":
            found = value if equals else script[index + 1] if index + 1 < len(script) else None
    if found is None and name != "config" and (config := flag_value(script, "config")):
        return _in_yaml(Path(config), name)
    return found


def set_flag(script: Sequence[str], name: str, value: str) -> list[str]:
    """Return the script with a flag of one value set, wherever it stood before."""
    left: list[str] = []
    rest = iter(script)
    for argument in rest:
        flag, equals, _ = argument.partition("=")
        if flag != f"--{name}":
            left.append(argument)
        elif not equals:
            next(rest, None)
    return [*left, f"--{name}", value]


def _in_yaml(path: Path, name: str) -> str | None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None  # train.py will say what is wrong with it
    value = content.get(name) if isinstance(content, dict) else None
    return None if value is None else str(value)
