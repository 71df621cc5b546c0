"""Outputs never cost anybody their files: what is in the way, what --overwrite discards, what it must not."""

from __future__ import annotations

from pathlib import Path

import pytest

from colossal_llama2 import cli
from colossal_llama2.engine.running_state import FILE_NAME
from colossal_llama2.errors import InputError
from colossal_llama2.train.checkpoints import StartingPoint
from colossal_llama2.train.folders import check_folders, prepare_folders
from colossal_llama2.train.run_log import METRICS_FILE
from colossal_llama2.train.settings import TrainSettings


def settings_for(work: Path, *flags: object) -> TrainSettings:
    base = ["--pretrained", work / "base", "--dataset", work / "corpus", "--save_dir", work / "out"]
    return cli.parse(TrainSettings, [str(argument) for argument in (*base, *flags)])


def earlier_run(save_dir: Path) -> Path:
    checkpoint = save_dir / "epoch-0_step-2"
    (checkpoint / "modeling").mkdir(parents=True)
    (checkpoint / FILE_NAME).touch()
    (save_dir / "modeling").mkdir()
    (save_dir / "run").mkdir()
    (save_dir / "run" / METRICS_FILE).touch()
    (save_dir / "run" / "events.out.tfevents.1").touch()
    return checkpoint


@pytest.fixture
def fresh(tmp_path: Path) -> StartingPoint:
    """Give the start of a new run from the base model."""
    return StartingPoint(tmp_path / "base", None)


def test_overwrite_discards_the_earlier_run_and_nothing_else(tmp_path: Path, fresh: StartingPoint) -> None:
    checkpoint = earlier_run(tmp_path / "out")
    mine = [tmp_path / "out" / "notes.txt", tmp_path / "out" / "run" / "notes.txt"]
    for path in mine:
        path.touch()
    with pytest.raises(InputError, match="holds an earlier run"):
        check_folders(settings_for(tmp_path), fresh)
    settings = settings_for(tmp_path, "--overwrite")
    check_folders(settings, fresh)
    assert checkpoint.exists(), "checking alone must change nothing"
    prepare_folders(settings, fresh)
    assert sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        mine[0], mine[1], tmp_path / "out" / "settings.yaml",
    ]  # fmt: skip
    assert not checkpoint.exists()


def test_a_shared_tensorboard_folder_keeps_everything_that_is_not_metrics(tmp_path: Path, fresh: StartingPoint) -> None:
    shared = tmp_path / "shared"
    (shared / "other").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    settings = settings_for(tmp_path, "--tensorboard_dir", shared)
    check_folders(settings, fresh)
    prepare_folders(settings, fresh)
    assert (shared / "other").is_dir()
    (shared / METRICS_FILE).touch()
    with pytest.raises(InputError, match="holds an earlier run"):
        check_folders(settings, fresh)


@pytest.mark.parametrize("name", ["epoch-0_step-2/modeling", "modeling"])
@pytest.mark.parametrize("role", ["weights", "pretrained", "dataset"])
def test_what_the_run_reads_is_never_discarded(tmp_path: Path, name: str, role: str) -> None:
    earlier_run(tmp_path / "out")
    source = tmp_path / "out" / name
    flags = {"weights": [], "pretrained": ["--pretrained", source], "dataset": ["--dataset", source]}[role]
    start = StartingPoint(source if role == "weights" else tmp_path / "base", None)
    with pytest.raises(InputError, match="would be discarded"):
        check_folders(settings_for(tmp_path, "--overwrite", *flags), start)
    assert source.is_dir()


def test_a_checkpoint_goes_on_at_home_and_is_a_new_run_elsewhere(tmp_path: Path) -> None:
    home = earlier_run(tmp_path / "out")
    at_home = StartingPoint(home / "modeling", home)
    check_folders(settings_for(tmp_path), at_home)
    prepare_folders(settings_for(tmp_path), at_home)
    assert home.is_dir()
    assert (tmp_path / "out" / "run" / METRICS_FILE).exists()
    earlier_run(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="holds an earlier run"):
        check_folders(settings_for(tmp_path, "--save_dir", tmp_path / "elsewhere"), at_home)


def test_what_a_killed_save_left_is_cleared(tmp_path: Path, fresh: StartingPoint) -> None:
    for name in (".epoch-0_step-4.partial", ".modeling.partial", ".mine.partial"):
        (tmp_path / "out" / name).mkdir(parents=True)
    prepare_folders(settings_for(tmp_path), fresh)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".mine.partial", "settings.yaml"]


@pytest.mark.parametrize("flag", ["--save_dir", "--tensorboard_dir", "--config_file"])
def test_a_file_in_the_way_is_named(tmp_path: Path, fresh: StartingPoint, flag: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        check_folders(settings_for(tmp_path, flag, tmp_path / "file" / "below"), fresh)


def test_a_folder_where_a_file_is_wanted_is_named(tmp_path: Path, fresh: StartingPoint) -> None:
    with pytest.raises(InputError, match="is a folder"):
        check_folders(settings_for(tmp_path, "--config_file", tmp_path), fresh)
