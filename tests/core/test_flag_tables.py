"""docs/flags.md is what the settings say; that also holds the set of flags still, so that none changes unseen."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from colossal_llama2.flag_tables import flag_table

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    specification = importlib.util.spec_from_file_location("write_flag_tables", ROOT / "tools" / "write_flag_tables.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert (ROOT / "docs" / "flags.md").read_text(encoding="utf-8") == module.page(), "run `make docs`"


@dataclass(frozen=True)
class Inner:
    """A group."""

    rate: Annotated[float, tyro.conf.arg(aliases=["-r"])] = 0.5
    """How fast,
    in steps."""


@dataclass(frozen=True)
class Outer:
    """A command."""

    source: Path
    """Where from."""
    inner: Inner
    """Not a flag."""
    kind: Literal["a", "b"] = "a"
    """One | other."""
    many: tuple[Path, ...] = ()
    """Several."""
    switch: bool = False
    """On or off."""
    limit: int | None = None
    """Number."""


def test_every_field_becomes_a_line() -> None:
    assert flag_table(Outer).splitlines()[2:] == [
        "| `--source` | path | required | Where from. |",
        "| `--rate` / `-r` | number | `0.5` | How fast, in steps. |",
        "| `--kind` | `a`, `b` | `a` | One \\| other. |",
        "| `--many` | path ... |  | Several. |",
        "| `--switch` | switch | off | On or off. |",
        "| `--limit` | number |  | Number. |",
    ]
