"""Running states come back as they were, and refuse what they do not fit."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from colossal_llama2.engine.running_state import (
    FILE_NAME,
    RunIdentity,
    RunningState,
    read_running_state,
    refuse_misfit,
    write_running_state,
)
from colossal_llama2.errors import InputError

IDENTITY = RunIdentity("tokenizer", "corpus", "everything", 7)
STATE = RunningState(
    epoch=1,
    step=30,
    rows_consumed=64,
    tokens=4096,
    rows_per_step=8,
    world_size=2,
    plugin="zero2",
    precision="bf16",
    identity=IDENTITY,
    scaler={"scale": 8.0},
    watched={"loss_curve": {"version": 1, "means": [2.5, 1 / 3]}},
)


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    write_running_state(STATE, tmp_path)
    assert read_running_state(tmp_path) == STATE
    refuse_misfit(STATE, IDENTITY, tmp_path)


def test_every_difference_is_refused_with_its_reason(tmp_path: Path) -> None:
    names = [entry.name for entry in fields(RunIdentity)]
    assert names
    for name in names:
        other = replace(IDENTITY, **{name: 8 if name == "seed" else "something else"})  # type: ignore[arg-type]
        with pytest.raises(InputError, match="was made with") as caught:
            refuse_misfit(STATE, other, tmp_path)
        assert str(tmp_path) in str(caught.value)


def test_another_version_is_refused(tmp_path: Path) -> None:
    write_running_state(replace(STATE, version=99), tmp_path)
    with pytest.raises(InputError, match="version 99"):
        read_running_state(tmp_path)


def test_version_2_had_nobody_watching(tmp_path: Path) -> None:
    content = json.loads(json.dumps(asdict(replace(STATE, version=2))))
    del content["watched"]
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    assert read_running_state(tmp_path) == replace(STATE, version=2, watched={})


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 2}', '{"version": 2, "identity": {}}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(InputError, match=FILE_NAME):
        read_running_state(tmp_path)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a checkpoint"):
        read_running_state(tmp_path)


def test_it_is_plain_json(tmp_path: Path) -> None:
    write_running_state(STATE, tmp_path)
    assert json.loads((tmp_path / FILE_NAME).read_text())["plugin"] == "zero2"
