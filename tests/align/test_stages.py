"""The registry: every stage by its name, from a flag or a file, and none that is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from colossal_llama2 import cli
from colossal_llama2.align.stages import DEFAULT, STAGES, choose, overview
from colossal_llama2.errors import InputError

ROOT = Path(__file__).parents[2]


def test_every_stage_is_found_by_flag_and_file_and_names_itself(tmp_path: Path) -> None:
    assert choose([]).settings_type is STAGES[DEFAULT][0]
    for name, (settings_type, main, text) in STAGES.items():
        assert choose(["--stage", name]).settings_type is settings_type
        assert choose(["--lr", "1", f"--stage={name}"]).main is main
        file = tmp_path / f"{name}.yaml"
        file.write_text(f"lr: 1e-4\nstage: {name}\n")
        assert choose(["--config", str(file)]).settings_type is settings_type
        fields = dict(cli.flags(settings_type))
        assert fields["stage"].default == name
        assert text in overview()


def test_a_stage_that_is_not_there_is_a_mistake_of_one_line() -> None:
    with pytest.raises(InputError, match="--stage is 'stf'; give one of pretrain, sft"):
        choose(["--stage", "stf"])
    command = [sys.executable, str(ROOT / "train.py"), "--stage", "stf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: --stage is 'stf'")


def test_a_stage_shows_its_own_flags_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    for name, own in (("sft", "--neftune_alpha"), ("reward", "--reward_loss")):
        command = choose(["--stage", name, "--help"])
        with pytest.raises(SystemExit):
            cli.parse(command.settings_type, ["--stage", name, "--help"], command.note)
        shown = capsys.readouterr().out
        assert own in shown
        assert "--stage ppo" in shown or "--stage sft" in shown
        assert ("--neftune_alpha" in shown) == (name == "sft")
