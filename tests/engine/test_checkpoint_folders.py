"""Which checkpoints a folder has, and that one which goes is never half there under its name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.engine.checkpoint_folders import (
    clear_leftovers,
    latest_checkpoint,
    newer_checkpoints,
    remove_checkpoint,
    remove_older,
    set_aside,
    whole_checkpoints,
)
from colossal_llama2.engine.running_state import FILE_NAME
from colossal_llama2.errors import InputError


def checkpoints(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name / "modeling").mkdir(parents=True)
        (folder / name / FILE_NAME).touch()
    return [folder / name for name in names]


def test_the_newest_has_most_steps_and_half_of_one_does_not_count(tmp_path: Path) -> None:
    made = checkpoints(
        tmp_path, "epoch-0_step-9", "epoch-1_step-10", "epoch-10_step-100", "superseded-1_epoch-0_step-999"
    )
    (tmp_path / "epoch-0_step-200").mkdir()
    assert whole_checkpoints(tmp_path) == made[:3]
    assert latest_checkpoint(tmp_path) == made[2]
    assert newer_checkpoints(made[0]) == made[1:3]
    assert newer_checkpoints(made[3]) == []
    (aside,) = checkpoints(tmp_path, "superseded-2_epoch-1_step-10")
    assert newer_checkpoints(aside) == made[1:3], "as far on another course"
    assert newer_checkpoints(tmp_path / "mine") == []
    with pytest.raises(InputError, match="no whole checkpoint"):
        latest_checkpoint(tmp_path / "epoch-0_step-200")


def test_only_older_checkpoints_go(tmp_path: Path) -> None:
    made = checkpoints(
        tmp_path, "epoch-0_step-2", "epoch-0_step-4", "epoch-0_step-6", "mine", "superseded-1_epoch-0_step-9"
    )
    (tmp_path / "epoch-0_step-1").mkdir()  # not whole: not known to be ours
    remove_older(tmp_path, 0)
    assert whole_checkpoints(tmp_path) == made[:3]
    remove_older(tmp_path, 5)
    assert whole_checkpoints(tmp_path) == made[:3]
    remove_older(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch-0_step-1", "epoch-0_step-6", "mine", "superseded-1_epoch-0_step-9",
    ]  # fmt: skip


def test_a_kill_while_one_is_deleted_leaves_no_half_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made,) = checkpoints(tmp_path, "epoch-0_step-2")
    delete = shutil.rmtree

    def killed(path: Any, **options: Any) -> None:
        if not options:
            raise KeyboardInterrupt
        delete(path, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", killed)
        remove_checkpoint(made)
    assert whole_checkpoints(tmp_path) == []
    clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_set_aside_never_replaces_what_was_set_aside_before(tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        (made,) = checkpoints(tmp_path, "epoch-0_step-2")
        names.append(set_aside(made).name)
    assert names == ["superseded-1_epoch-0_step-2", "superseded-2_epoch-0_step-2"]
    assert (tmp_path / names[1] / FILE_NAME).exists()
    assert whole_checkpoints(tmp_path) == []


def test_what_was_moved_out_of_the_way_of_a_killed_rename_comes_back(tmp_path: Path) -> None:
    (made,) = checkpoints(tmp_path, "epoch-0_step-2")
    checkpoints(tmp_path, ".epoch-0_step-4.replaced-17", ".epoch-0_step-2.replaced-17", ".modeling.replaced-17")
    checkpoints(tmp_path, ".epoch-0_step-6.partial", ".modeling.partial-17", ".adapter.partial", ".mine.partial")
    checkpoints(tmp_path, ".adapter.replaced-17", ".adapter.removed")
    clear_leftovers(tmp_path)
    assert whole_checkpoints(tmp_path) == [made, tmp_path / "epoch-0_step-4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".mine.partial", "adapter", "epoch-0_step-2", "epoch-0_step-4", "modeling",
    ]  # fmt: skip
