"""tools/launch.py as a user sees it: one line for a mistake, the failing rank by name, arguments whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.engine.nodes.launch import LaunchSettings, main, take_script
from colossal_llama2.errors import InputError

ROOT = Path(__file__).parents[3]
NASTY = ["a b", "it's", '"q"', "$(touch gone)", "$$", "${local_rank}", "new\nline", "", "*", "\\", "--nnodes", "汉"]
ECHO = """
import json, os, sys
names = ("RANK", "WORLD_SIZE", "NAMED", "SECRET")
print(json.dumps([os.getcwd(), sys.argv[1:], *map(os.environ.get, names)]))
"""
COLLECTIVE = """
import os, time
from dataclasses import dataclass
from colossal_llama2 import cli

@dataclass(frozen=True)
class Settings:
    \"\"\"Talk to the other rank until rank 1 fails.\"\"\"
    how: str
    \"\"\"How it fails.\"\"\"

def main(settings):
    import torch
    from colossal_llama2.engine import ranks
    from colossal_llama2.errors import InputError
    if settings.how == "mistake":
        raise InputError("the flag is wrong", remedy="right it")
    ranks.launch(0)
    try:
        for step in range(100_000):
            ranks.sum_over_ranks(1.0)
            if step == 3 and ranks.rank() == 1:
                if settings.how == "kill":
                    os.kill(os.getpid(), 9)
                raise ValueError("row 17 is bad")
    finally:
        ranks.close()

cli.run(Settings, main, leave=os._exit)
"""


def launch(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "launch.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
    )


@pytest.fixture
def two_nodes(stub_ssh: Path, tmp_path: Path) -> list[str]:
    """Give the flags for two hosts of one rank, played by the stand-in for ssh."""
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("# two\nnode-a slots=1\nme@node-b:2222 slots=1  # another\n")
    return ["--hostfile", str(hostfile), "--master_addr", "127.0.0.1"]


def test_the_command_line_is_cut_at_the_first_dashes() -> None:
    assert take_script(["launch.py", "--a", "1", "--", "t.py", "--", "x"]) == (
        ["launch.py", "--a", "1"],
        ["t.py", "--", "x"],
    )
    assert take_script(["launch.py"]) == (["launch.py"], [])


@pytest.mark.parametrize(
    ("flags", "script", "what"),
    [
        ({"nproc_per_node": 1}, [], "no script"),
        ({"nproc_per_node": 1}, ["none.py"], "none.py: no such script"),
        ({}, ["train.py"], "neither --hostfile nor --nproc_per_node"),
        ({"hostfile": Path("none")}, ["train.py"], "none: cannot be read"),
        ({"nproc_per_node": 0}, ["train.py"], "--nproc_per_node is 0"),
        ({"nproc_per_node": 1, "max_restarts": -1}, ["train.py"], "--max_restarts is -1"),
        ({"nproc_per_node": 1, "master_port": 70000}, ["train.py"], "--master_port is 70000"),
        ({"nproc_per_node": 1, "silence_seconds": 1.0}, ["train.py"], "--silence_seconds is 1"),
        ({"nproc_per_node": 1, "forward_env": "NOT_SET"}, ["train.py"], "NOT_SET, which is not set"),
        ({"nproc_per_node": 1, "ssh_config": Path("none")}, ["train.py"], "none: no such file"),
    ],
)
def test_mistakes_are_found_before_anything_starts(flags: dict[str, Any], script: list[str], what: str) -> None:
    with pytest.raises(InputError) as caught:
        main(LaunchSettings(**flags), [str(ROOT / "train.py") if name == "train.py" else name for name in script])
    assert what in str(caught.value)


def test_a_mistake_is_one_line_and_exit_2(tmp_path: Path) -> None:
    done = launch("--hostfile", tmp_path / "none", "--", "train.py")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_localhost_cannot_be_the_master_of_others(tmp_path: Path) -> None:
    (tmp_path / "hostfile").write_text("\nlocalhost\nnode-b\n")
    with pytest.raises(InputError, match="hostfile:2: the other hosts cannot reach"):
        main(LaunchSettings(hostfile=tmp_path / "hostfile", nproc_per_node=1), [str(ROOT / "train.py")])


def test_every_rank_gets_what_was_meant(two_nodes: list[str], tmp_path: Path, stub_ssh: Path) -> None:
    folder = tmp_path / "it's a $(place)"
    folder.mkdir()
    (folder / "echo it.py").write_text(ECHO)
    flags = [*two_nodes, "--forward_env", "NAMED"]
    done = launch(*flags, "--", "echo it.py", *NASTY, cwd=folder, NAMED='"$(touch gone)"\n', SECRET="s3cret")
    assert done.returncode == 0, done.stderr
    expected = {
        f"[{host} rank {rank}] " + json.dumps([str(folder), NASTY, str(rank), "2", '"$(touch gone)"\n', None])
        for rank, host in enumerate(["node-a", "node-b:2222"])
    }
    assert set(done.stdout.splitlines()) == expected
    assert [path.name for path in folder.iterdir()] == ["echo it.py"]
    assert stub_ssh.read_text().split() == ["node-a", "me@node-b"] or stub_ssh.read_text().split() == [
        "me@node-b",
        "node-a",
    ]


@pytest.mark.long
@pytest.mark.parametrize("how", ["raise", "kill"])
def test_the_rank_that_failed_is_named(two_nodes: list[str], tmp_path: Path, how: str) -> None:
    (tmp_path / "collective.py").write_text(COLLECTIVE)
    done = launch(*two_nodes, "--", tmp_path / "collective.py", "--how", how)
    assert done.returncode == 1
    last = done.stderr.rstrip().splitlines()[-1]
    if how == "raise":
        assert last == "error: rank 1 on node-b:2222 failed (exit code 1): ValueError: row 17 is bad"
        assert done.stderr.count('ValueError("row 17 is bad")') == 2, "as it happened, and at the end"
    else:
        assert last.startswith("error: rank 1 on node-b:2222 failed: Signal 9 (SIGKILL)")
    assert "rank 0 of 2" not in done.stderr, "the victim has nothing to say"


@pytest.mark.long
def test_a_mistake_in_the_script_is_one_line_and_exit_2(two_nodes: list[str], tmp_path: Path) -> None:
    (tmp_path / "collective.py").write_text(COLLECTIVE)
    done = launch(*two_nodes, "--max_restarts", "3", "--", tmp_path / "collective.py", "--how", "mistake")
    assert done.returncode == 2
    assert done.stderr == "[node-a rank 0] error: the flag is wrong; right it\n"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_by_itself(
    tiny_run_flags: Callable[[Path], list[str]], two_nodes: list[str], tmp_path: Path
) -> None:
    """Rank 1 is killed once, after a checkpoint; the curve is that of a run nobody disturbed."""
    whole = launch(*two_nodes, "--", "train.py", *tiny_run_flags(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    (tmp_path / "train.py").write_text(
        "import os, sys, threading, time\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "def kill():\n"
        f"    while not Path({str(tmp_path)!r}, 'out/epoch-0_step-10/running_states.json').exists(): time.sleep(0.01)\n"
        "    os.kill(os.getpid(), 9)\n"
        "if os.environ['RANK'] == '1' and '--load_checkpoint' not in sys.argv:\n"
        "    threading.Thread(target=kill, daemon=True).start()\n"
        + (ROOT / "train.py").read_text().replace("from __future__ import annotations\n", "")
    )
    flags = [*two_nodes, "--max_restarts", "1", "--restart_seconds", "0"]
    done = launch(*flags, "--", tmp_path / "train.py", *tiny_run_flags(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "restart 1 of 1, from epoch-0_step-" in done.stderr
    curves = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "out")
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 30


@pytest.mark.long
@pytest.mark.timeout(600)
def test_sigterm_saves_a_checkpoint_on_the_way_out(
    tiny_run_flags: Callable[[Path], list[str]], two_nodes: list[str], tmp_path: Path
) -> None:
    script = ["train.py", *tiny_run_flags(tmp_path / "out"), "--save_interval", "0", "--max_steps", "5000"]
    process = subprocess.Popen(
        [sys.executable, "tools/launch.py", *two_nodes, "--", *script, "--num_epochs", "1000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    metrics = tmp_path / "out" / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.is_file() and metrics.read_text().count("\n") > 3):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "SIGTERM: stopping" in err
    assert "stopped by SIGTERM at step" in out
    assert list((tmp_path / "out").glob("epoch-*_step-*/running_states.json"))


@pytest.mark.long
@pytest.mark.parametrize("how", ["raise", "kill"])
def test_plain_torchrun_names_the_rank_too(tmp_path: Path, how: str) -> None:
    (tmp_path / "collective.py").write_text(COLLECTIVE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "collective.py"), "--how", how],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 1
    report = done.stderr.rpartition("Root Cause")[2]
    assert "rank      : 1 (local_rank: 1)" in report
    assert ("row 17 is bad" if how == "raise" else "Signal 9 (SIGKILL)") in report
