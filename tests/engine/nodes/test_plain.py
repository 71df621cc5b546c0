"""The bare hostfile for `colossalai run`, and the example script that uses it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from colossal_llama2.engine.nodes.plain import PlainSettings, main
from colossal_llama2.errors import InputError

ROOT = Path(__file__).parents[3]


def test_comments_and_options_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hosts").write_text("# c\nnode-1 slots=8 port=2222\n\nnode-2:2222 # d\n")
    assert main(PlainSettings(tmp_path / "hosts", tmp_path / "out", 8)) == 0
    assert (tmp_path / "out").read_text() == "node-1\nnode-2\n"
    assert capsys.readouterr().out == "--ssh-port=2222\n"
    with pytest.raises(InputError, match="slots=8"):
        main(PlainSettings(tmp_path / "hosts", tmp_path / "out", 9))


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """Give the example script with its paths filled in, beside stand-ins for `colossalai` and `python tools/...`."""
    for name in ("model", "data"):
        (tmp_path / name).mkdir()
    text = (ROOT / "train.example.sh").read_text()
    for name, folder in (("checkpoints", "c"), ("tensorboard", "t"), ("configs", "f"), ("expanded-model", "model")):
        text = text.replace(f"/path/to/{name}", str(tmp_path / folder))
    text = text.replace("/path/to/spliced_tokenized_output_arrow", str(tmp_path / "data"))
    assert "/path/to" not in text
    (tmp_path / "train.sh").write_text(text)
    shutil.copyfile(ROOT / "hostfile.example", tmp_path / "hostfile")
    (tmp_path / "tools").mkdir()
    shutil.copyfile(ROOT / "tools" / "plain_hostfile.py", tmp_path / "tools" / "plain_hostfile.py")
    (tmp_path / "tools" / "launch.py").write_text("import sys; print(sys.argv[1:])")
    stand_ins = tmp_path / ".venv" / "bin"
    stand_ins.mkdir(parents=True)
    (stand_ins / "python").write_text(f'#!/bin/bash\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')
    (stand_ins / "colossalai").write_text('#!/bin/bash\nenv | grep -c SECRET; printf "%s\\n" "$@"\n')
    for path in stand_ins.iterdir():
        path.chmod(0o755)
    return tmp_path / "train.sh"


def run(script: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(script)]
    env = {**os.environ, "SECRET": "s", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_the_example_runs_after_filling_in(example: Path) -> None:
    done = run(example)
    assert done.returncode == 0, done.stderr
    secrets, *arguments = done.stdout.splitlines()
    assert secrets == "0", "what colossalai run exports holds no secret"
    hosts = Path(arguments[arguments.index("--hostfile") + 1])
    assert hosts.read_text() == "node-1\nnode-2\n"
    assert arguments[arguments.index("train.py") + 1 :][:2] == ["--pretrained", str(example.parent / "model")]


def test_the_example_knows_the_other_launcher(example: Path) -> None:
    done = run(example, LAUNCHER="launch")
    assert done.returncode == 0, done.stderr
    assert "'--max_restarts', '3', '--', 'train.py', '--pretrained'" in done.stdout


@pytest.mark.parametrize(
    ("hosts", "what"), [("a\na\n", "hostfile:2"), ("me@a\n", "tools/launch.py"), (None, "hostfile")]
)
def test_the_example_refuses_a_bad_hostfile(example: Path, hosts: str | None, what: str) -> None:
    hostfile = example.parent / "hostfile"
    hostfile.unlink() if hosts is None else hostfile.write_text(hosts)
    done = run(example)
    assert done.returncode == 2
    assert what in done.stderr
    assert done.stdout == ""
