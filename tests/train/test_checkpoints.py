"""What a run does about its checkpoints: how many it keeps, when it cannot write them, where a resume leads."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colossal_llama2 import cli
from colossal_llama2.engine.checkpoint_folders import whole_checkpoints
from colossal_llama2.errors import InputError
from colossal_llama2.train.pretrain import main
from colossal_llama2.train.settings import TrainSettings


@pytest.fixture
def run_here(tiny_model_dir: Path, corpus_dir: Path, tmp_path: Path) -> Callable[..., int]:
    """Give a function that trains in this process, on one rank, and saves every second step."""
    base = ["--pretrained", tiny_model_dir, "--dataset", corpus_dir, "--save_dir", tmp_path / "out", "--max_length", 48]
    base += ["--mixed_precision", "fp32", "--save_interval", 2]

    def run(*flags: object) -> int:
        return main(cli.parse(TrainSettings, [str(argument) for argument in (*base, *flags)]))

    return run


@pytest.fixture
def limit_files() -> Iterator[Callable[[int], None]]:
    """Give a function that lets the system refuse every file beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(save_dir: Path) -> list[str]:
    return [path.name for path in whole_checkpoints(save_dir)]


def losses(save_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (save_dir / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("how", [[], ["--async_save"]])
def test_the_newest_are_kept(run_here: Callable[..., int], tmp_path: Path, how: list[str]) -> None:
    assert run_here("--max_steps", 9, "--keep_checkpoints", 2, *how) == 0
    assert names(tmp_path / "out") == ["epoch-0_step-6", "epoch-0_step-8"]
    assert not list((tmp_path / "out").glob(".*"))


def test_a_save_that_fails_is_tried_again_at_the_next_interval(
    run_here: Callable[..., int],
    tmp_path: Path,
    limit_files: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A limit on file sizes stands for a full disk; it is lifted when the warning is read."""
    warn = cli.warn

    def freed(message: str) -> None:
        warn(message)
        limit_files(resource.RLIM_INFINITY)

    monkeypatch.setattr(cli, "warn", freed)
    limit_files(100_000)
    assert run_here("--max_steps", 5) == 0
    said = capsys.readouterr().err
    assert "warning" in said
    assert "epoch-0_step-2 could not be written" in said
    assert str(tmp_path / "out") in said
    assert names(tmp_path / "out") == ["epoch-0_step-4"]
    assert len(losses(tmp_path / "out")) == 5


def test_a_run_that_can_save_no_more_ends_with_one_error(
    run_here: Callable[..., int], tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    assert run_here("--max_steps", 2) == 0
    limit_files(100_000)
    with pytest.raises(InputError, match=r"3 saves on end have failed; free space.*latest") as caught:
        run_here("--max_steps", 20, "--load_checkpoint", "latest")
    assert str(tmp_path / "out") in str(caught.value)
    assert "the last good checkpoint is" in str(caught.value)
    assert names(tmp_path / "out") == ["epoch-0_step-2"]
    assert not list((tmp_path / "out").glob(".*"))


def test_a_finished_model_that_cannot_be_written_says_where_to_go_on(
    run_here: Callable[..., int], tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    limit_files(100_000)
    with pytest.raises(InputError, match=r"the finished model could not be written .*no checkpoint yet"):
        run_here("--max_steps", 1)
    assert not (tmp_path / "out" / "modeling").exists()


def test_going_back_sets_what_came_after_aside(
    run_here: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_dir = tmp_path / "out"
    assert run_here("--max_steps", 6, "--num_epochs", 2) == 0
    assert run_here("--max_steps", 5, "--load_checkpoint", save_dir / "epoch-0_step-2", "--lr", 1e-5) == 0
    said = capsys.readouterr().err
    for step in (4, 6):
        assert f"renamed to superseded-1_epoch-0_step-{step}" in said
        assert (save_dir / f"superseded-1_epoch-0_step-{step}" / "running_states.json").exists()
    assert names(save_dir) == ["epoch-0_step-2", "epoch-0_step-4"]
    assert run_here("--max_steps", 7, "--load_checkpoint", save_dir / "superseded-1_epoch-0_step-6") == 0, "lost"


def test_settings_that_are_read_back_neither_overwrite_nor_resume(run_here: Callable[..., int], tmp_path: Path) -> None:
    assert run_here("--max_steps", 2) == 0
    assert run_here("--max_steps", 2, "--overwrite") == 0
    written = tmp_path / "out" / "settings.yaml"
    assert written.read_text().startswith("# started with --overwrite, which --config does not repeat\n")
    assert run_here("--max_steps", 4, "--load_checkpoint", "latest") == 0
    assert written.read_text().startswith("# started with --load_checkpoint latest, which --config does not repeat\n")
    again = cli.parse(TrainSettings, ["--config", str(written)])
    assert (again.model.load_checkpoint, again.output.overwrite, again.data.max_steps) == ("", False, 4)
    weights = tmp_path / "out" / "epoch-0_step-2" / "modeling"
    assert run_here("--max_steps", 2, "--load_checkpoint", weights, "--save_dir", tmp_path / "next") == 0
    stage = cli.parse(TrainSettings, ["--config", str(tmp_path / "next" / "settings.yaml")])
    assert stage.model.load_checkpoint == str(weights), "weights to start from are an input of the run"
