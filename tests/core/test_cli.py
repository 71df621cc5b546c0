"""Flags, YAML and mistakes: the same names everywhere, one line and exit code 2 for a mistake."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from colossal_llama2 import cli
from colossal_llama2.errors import InputError


@dataclass(frozen=True)
class Group:
    lr: float = 3e-4
    """Peak."""
    weight_decay: Annotated[float, tyro.conf.arg(aliases=["-w"])] = 0.1
    """Decay."""


@dataclass(frozen=True)
class Command:
    """Do something."""

    source: Path
    """Where from."""
    dataset: tuple[Path, ...] = ()
    """Several."""
    group: Group = field(default_factory=Group)
    plugin: Literal["zero2", "ddp"] = "zero2"
    """Which."""
    use_it: bool = False
    """Switch."""
    max_steps: int | None = None
    """Number."""


def test_flags_are_flat_and_spelled_as_the_fields() -> None:
    assert [name for name, _ in cli.flags(Command)] == [
        "source", "dataset", "lr", "weight_decay", "plugin", "use_it", "max_steps",
    ]  # fmt: skip
    parsed = cli.parse(Command, ["--source", "a", "--dataset", "b", "c", "--lr", "1e-4", "-w", "0", "--use_it"])
    assert parsed == Command(Path("a"), (Path("b"), Path("c")), Group(1e-4, 0.0), use_it=True)


def test_what_is_saved_reads_back_the_same(tmp_path: Path) -> None:
    settings = Command(Path("a b"), (Path("c"), Path("d,e")), Group(1e-5, 0.0), "ddp", True, 7)
    config = tmp_path / "run.yaml"
    config.write_text(cli.as_yaml(settings))
    assert cli.parse(Command, ["--config", str(config)]) == settings


def test_nothing_is_saved_where_it_is_not_the_default(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Output:
        """Outputs."""

        jsonl: Path | None = Path("jsonl")
        """Folder, or None for none."""
        limit: int | None = None
        """Limit."""

    config = tmp_path / "run.yaml"
    config.write_text(cli.as_yaml(Output(None)))
    assert config.read_text() == "jsonl: null\n"
    assert cli.parse(Output, ["--config", str(config)]) == Output(None)


def test_a_flag_wins_over_the_file_and_yaml_numbers_are_numbers(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("source: x\nlr: 1e-4\nuse_it: true\nmax_steps: null\ndataset: [p, q]\n")
    parsed = cli.parse(Command, [f"--config={config}", "--no_use_it", "--max_steps", "3"])
    assert parsed == Command(Path("x"), (Path("p"), Path("q")), Group(1e-4), max_steps=3)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("source: x\nlrr: 1\n", r"run\.yaml:2: unknown setting 'lrr'"),
        ("- a\n", "not a mapping"),
        ("a: [1\n", "not YAML"),
        ("source: x\nlr: {a: 1}\n", "holds a mapping"),
        ("source: x\nlr: high\n", "--lr"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, content: str, complaint: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(content)
    with pytest.raises(InputError, match=complaint):
        cli.parse(Command, ["--config", str(config)])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "missing --source"),
        (["--source", "a", "--lrr", "1"], "did you mean --lr"),
        (["--source", "a", "--plug", "ddp"], "unrecognized options"),
        (["--source", "a", "--plugin", "zero9"], "zero2"),
        (["--source", "a", "--lr", "fast"], "--lr"),
        (["--source", "a", "--max-steps", "1"], "write --max_steps"),
        (["--source"], "--source"),
        (["--source", "a", "--config"], "--config needs a file"),
        (["--source", "a", "--config", "/absent.yaml"], "cannot be read"),
    ],
)
def test_a_mistake_in_the_flags_is_named(arguments: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        cli.parse(Command, arguments)


SCRIPT = """
import sys
from dataclasses import dataclass
from colossal_llama2 import cli
from colossal_llama2.errors import InputError

@dataclass(frozen=True)
class Settings:
    '''Fail in a chosen way.'''
    how: str = "fine"
    '''Which way.'''

def main(settings: Settings) -> int | None:
    if settings.how == "mistake":
        raise InputError("wrong\\nfile", path="a.jsonl", line=3, remedy="right it")
    if settings.how == "bug":
        raise RuntimeError("a bug")
    return 5 if settings.how == "code" else None

cli.run(Settings, main)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "lines", "text"),
    [
        (["--how", "fine"], 0, 0, ""),
        (["--how", "code"], 5, 0, ""),
        (["--how", "mistake"], 2, 1, "error: a.jsonl:3: wrong file; right it"),
        (["--nonsense"], 2, 1, "error: unrecognized options"),
    ],
)
def test_exit_codes(arguments: list[str], code: int, lines: int, text: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == lines
    assert text in done.stderr


def test_a_bug_keeps_its_traceback_and_exits_with_1() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, "--how", "bug"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "a bug" in done.stderr


def test_help_names_every_flag_and_exits_with_0() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--how" in done.stdout
    assert "--config" in done.stdout


def test_the_first_rank_speaks_first_and_another_only_when_it_is_left_alone() -> None:
    environment = {"RANK": "1", "PATH": "/usr/bin", "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "--how", "mistake"], stderr=subprocess.PIPE, text=True, env=environment
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.5)  # a launcher ends it here, when the first rank has spoken and left
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors == "error: rank 1: a.jsonl:3: wrong file; right it\n"
