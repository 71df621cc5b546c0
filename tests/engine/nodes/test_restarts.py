"""Starting train.py again: from its own checkpoint, and never over another run's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from colossal_llama2.engine.checkpoint_folders import whole_checkpoints
from colossal_llama2.engine.nodes.restarts import Restarts, flag_value, set_flag


def write_checkpoint(save_dir: Path, name: str, whole: bool = True) -> None:
    folder = save_dir / name
    folder.mkdir(parents=True)
    if whole:
        (folder / "running_states.json").write_text("{}")


def write_metrics(save_dir: Path) -> None:
    (save_dir / "run").mkdir(parents=True)
    (save_dir / "run" / "metrics.jsonl").write_text("")


def test_a_checkpoint_of_this_launch_is_continued(tmp_path: Path) -> None:
    script = ["some/train.py", "--save_dir", "out", "--load_checkpoint=base/modeling", "--lr", "1"]
    restarts = Restarts(script, tmp_path)
    write_metrics(tmp_path / "out")
    write_checkpoint(tmp_path / "out", "epoch-0_step-9")
    write_checkpoint(tmp_path / "out", "epoch-0_step-10")
    write_checkpoint(tmp_path / "out", "epoch-1_step-11", whole=False)
    command, how = restarts.command()
    assert command == ["some/train.py", "--save_dir", "out", "--lr", "1", "--load_checkpoint", "latest"]
    assert how == "from epoch-0_step-10"
    assert whole_checkpoints(tmp_path / "out")[-1].name == "epoch-0_step-10", "what train.py will find"


def test_what_the_failed_start_left_gives_way(tmp_path: Path) -> None:
    restarts = Restarts(["train.py", f"--save_dir={tmp_path}/out"], Path("/"))
    assert restarts.command()[0] == ["train.py", f"--save_dir={tmp_path}/out"], "nothing is there, so nothing gives way"
    write_metrics(tmp_path / "out")
    command, how = restarts.command()
    assert command == ["train.py", f"--save_dir={tmp_path}/out", "--overwrite"]
    assert "no whole checkpoint" in how


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_another_run_is_never_continued_nor_discarded(tmp_path: Path, flags: list[str]) -> None:
    """The first start failed before it had looked at the folder: a host was down, say."""
    script = ["train.py", "--save_dir", "out", *flags]
    write_checkpoint(tmp_path / "out", "epoch-0_step-500")
    write_metrics(tmp_path / "out")
    assert Restarts(script, tmp_path).command()[0] == script


@pytest.mark.parametrize("finished", ["modeling", "adapter"])
def test_a_finished_model_is_another_run(tmp_path: Path, finished: str) -> None:
    """All that is left of a run is its result: nothing may discard that."""
    script = ["train.py", "--save_dir", "out"]
    (tmp_path / "out" / finished).mkdir(parents=True)
    restarts = Restarts(script, tmp_path)
    write_metrics(tmp_path / "out")
    assert restarts.command()[0] == script


def test_the_same_checkpoint_written_again_is_a_new_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "out", "epoch-0_step-5")
    restarts = Restarts(["train.py", "--save_dir", "out", "--overwrite"], tmp_path)
    state = tmp_path / "out" / "epoch-0_step-5" / "running_states.json"
    state.unlink()
    state.write_text("{ }")
    import os

    os.utime(state, ns=(1, 1))
    assert restarts.command()[0][-2:] == ["--load_checkpoint", "latest"]


def test_a_resumed_run_stays_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "out", "epoch-0_step-5")
    script = ["train.py", "--save_dir", "out", "--load_checkpoint", "latest"]
    command, how = Restarts(script, tmp_path).command()
    assert command == script
    assert "latest" in how


def test_other_scripts_start_as_they_did(tmp_path: Path) -> None:
    for script in (["bench.py", "--save_dir", "out"], ["train.py"]):
        restarts = Restarts(script, tmp_path)
        write_checkpoint(tmp_path / "out", f"epoch-0_step-{len(script)}")
        assert restarts.command()[0] == script


def test_flags(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("save_dir: from/file\nlr: 1e-4\n")
    assert flag_value(["t", "--save_dir", "a", "--save_dir=b"], "save_dir") == "b"
    assert flag_value(["t", "--config", str(config)], "save_dir") == "from/file"
    assert flag_value(["t", f"--config={config}", "--save_dir", "a"], "save_dir") == "a"
    assert flag_value(["t", "--config", str(tmp_path / "none")], "save_dir") is None
    assert flag_value(["t", "--save_dir"], "save_dir") is None
    assert set_flag(["t", "--a", "1", "--b=2", "--a=3", "-x"], "a", "4") == ["t", "--b=2", "-x", "--a", "4"]
