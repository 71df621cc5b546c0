"""Workers: results in order, the first mistake ends it, and nobody writes on after the end."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.dataset import workers
from colossal_llama2.dataset.workers import Workers, start_workers
from colossal_llama2.errors import InputError

# Worker processes import the functions they run, so these need a module of their own.
JOBS = """
import os
import signal
import time
from colossal_llama2.errors import InputError

def double(number):
    return 2 * number

def be_killed(number):
    os.kill(os.getpid(), signal.SIGKILL)

def write_slowly(number, folder):
    if number == 0:
        while not (folder / "1").exists():
            time.sleep(0.01)
        raise InputError("a mistake", path="f", line=3, remedy="mend it")
    (folder / str(number)).write_text("begun")
    time.sleep(0.3)
    (folder / str(number)).write_text("done")
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give the module; job 0 of `write_slowly` fails while job 1 is at work."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "jobs_of_this_test.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "jobs_of_this_test", raising=False)
    return importlib.import_module("jobs_of_this_test")


def test_results_come_in_order(jobs: Any) -> None:
    with start_workers(1) as workers:
        assert workers.run_all(jobs.double, range(20), "doubling") == list(range(0, 40, 2))


def test_when_it_fails_nobody_is_writing_any_more(tmp_path: Path, jobs: Any) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with start_workers(2) as pool:
        assert pool.run_all(jobs.double, range(20), "doubling") == list(range(0, 40, 2))
        with pytest.raises(InputError, match=r"^f:3: a mistake; mend it$"):
            pool.run_all(partial(jobs.write_slowly, folder=folder), range(50), "writing")
        written = {path.name: path.read_text() for path in folder.iterdir()}
        time.sleep(0.5)
        assert {path.name: path.read_text() for path in folder.iterdir()} == written
        assert set(written.values()) == {"done"}
        assert len(written) < 10  # the rest was never begun


def test_a_worker_that_is_killed_is_said_in_a_line(jobs: Any) -> None:
    with start_workers(2) as pool, pytest.raises(InputError, match=r"worker was killed while killing.*--num_workers 1"):
        pool.run_all(jobs.be_killed, range(3), "killing")


def test_elsewhere_than_on_a_terminal_a_line_tells_how_far_it_is(
    jobs: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_SECONDS_BETWEEN_LINES", 0.0)
    Workers().run_all(jobs.double, range(3), "doubling")
    assert capsys.readouterr().out.splitlines()[:2] == ["doubling: 1 of 3", "doubling: 2 of 3"]
    monkeypatch.setattr(workers, "_SECONDS_BETWEEN_LINES", 60.0)
    Workers().run_all(jobs.double, range(3), "doubling")
    assert capsys.readouterr().out == ""


def test_ray_is_named_where_it_is_missing_or_not_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"needs Ray.*pip install"), start_workers(0, "auto"):
        pass


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from colossal_llama2.dataset.workers import start_workers\n\n\n"
        "def report(number):\n"
        "    Path(sys.argv[1], str(os.getpid())).touch()\n"
        "    time.sleep(0.2)\n\n\n"
        "if __name__ == '__main__':\n"
        "    with start_workers(2) as workers:\n"
        "        workers.run_all(report, range(2), 'reporting')\n"
        "        Path(sys.argv[1], 'ready').touch()\n"
        "        time.sleep(60)\n"
    )
    seen = tmp_path / "seen"
    seen.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(seen)])
    try:
        until = time.monotonic() + 30
        while not (seen / "ready").exists() and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    processes = [int(path.name) for path in seen.iterdir() if path.name.isdigit()]
    assert processes
    until = time.monotonic() + 10
    while any(_is_running(process) for process in processes) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_is_running(process) for process in processes)


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
