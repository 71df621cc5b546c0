"""Hosts held together: one that fails takes the others down, and nothing is left behind, whoever dies first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import json, signal, sys
from pathlib import Path
from colossal_llama2.engine.nodes import node, signals, supervisor
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may themselves have been started to outlive a terminal
from colossal_llama2.engine.nodes.hostfile import Host
from colossal_llama2.engine.nodes.printer import Printer
from colossal_llama2.engine.nodes.remote import Ssh, module_command
order = json.loads(sys.argv[1])
supervisor._GRACE_AFTER_FAILURE = supervisor._GRACE_AFTER_INTERRUPT = 1.0
stop = signals.StopSignals(grace=1.0)
nodes = [
    node.Node(name, module_command(Host(name), "colossal_llama2.engine.nodes.watchdog", Ssh()))
    for name in order["hosts"]
]
def job_of(number, port):
    return {"argv": order["commands"][number], **{name: order[name] for name in ("directory", "env", "silence")}}
printer = Printer(True)
outcome = supervisor.Supervisor(nodes, job_of, printer, order["silence"], 5).run(stop)
printer.release()
print("outcome", json.dumps([outcome.code, outcome.problem, outcome.may_restart]), flush=True)
"""
FOR_EVER = "echo $$ > $PIDS/$1; setsid sleep 1000 & echo $! > $PIDS/$1-orphan; echo up; wait $!"


def bash(text: str, *arguments: str) -> list[str]:
    return ["bash", "-c", text, "bash", *arguments]


@pytest.fixture
def supervise(stub_ssh: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Give a function that starts a supervisor over hosts that the stand-in for ssh plays."""

    def start(
        commands: list[list[str]],
        hosts: list[str] | None = None,
        silence: float = 20.0,
        forwarded: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        order = {
            "hosts": hosts or [f"node-{number}" for number in range(len(commands))],
            "commands": commands,
            "directory": str(tmp_path),
            "env": {"PIDS": str(tmp_path), "NAMED": 'a "b" $(c)', **(forwarded or {})},
            "silence": silence,
        }
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(order)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SECRET": "s3cret"},
        )

    return start


def finish(process: subprocess.Popen[str]) -> tuple[list[Any], str, str]:
    """Wait; return [code, problem, may_restart], standard output before that, and standard error."""
    out, err = process.communicate(timeout=60)
    said, _, outcome = out.rpartition("outcome ")
    assert outcome, err
    return json.loads(outcome), said, err


def wait_for_files(folder: Path, *names: str) -> list[int]:
    deadline = time.monotonic() + 30
    while not all((folder / name).is_file() and (folder / name).read_text().endswith("\n") for name in names):
        assert time.monotonic() < deadline, "the jobs did not start"
        time.sleep(0.02)
    return [int((folder / name).read_text()) for name in names]


def assert_gone(pids: list[int], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    assert pids
    while alive := [
        pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]:
        assert time.monotonic() < deadline, f"{alive} are still there"
        time.sleep(0.05)


def test_all_is_well(supervise: Callable[..., subprocess.Popen[str]]) -> None:
    text = 'echo "out $NAMED $SECRET"; echo err >&2; printf "no end"'
    outcome, _, err = finish(supervise([bash(text), bash(text)], ["chatty-0", "node-1"]))
    assert outcome == [0, "", False]
    for host in ("chatty-0", "node-1"):
        assert f'[{host}] out a "b" $(c) \n' in err, (
            "lines of no rank go to standard error; only named variables travel"
        )
        assert f"[{host}] err" in err
        assert f"[{host}] no end" in err
    assert "Welcome to chatty-0" in err


def test_a_long_command_line_arrives_whole(supervise: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """More than a pipe takes at once, which is 64 KiB."""
    arguments = [f"{number:03d}" + "x" * 997 for number in range(100)]
    process = supervise([bash('printf "%s\\n" "$@" > $PIDS/arguments', *arguments), bash("true")], silence=6.0)
    outcome, _, err = finish(process)
    assert outcome == [0, "", False], err
    assert (tmp_path / "arguments").read_text().splitlines() == arguments


def test_the_job_imports_this_package_before_what_is_forwarded(
    supervise: Callable[..., subprocess.Popen[str]],
) -> None:
    """A forwarded PYTHONPATH may hold another copy of the package."""
    _, _, err = finish(supervise([bash('echo "path $PYTHONPATH"')], forwarded={"PYTHONPATH": "/elsewhere:/more"}))
    assert f"path {ROOT}:/elsewhere:/more\n" in err


def test_lines_of_ranks_say_whose_they_are(supervise: Callable[..., subprocess.Popen[str]]) -> None:
    outcome, out, err = finish(supervise([bash(r"printf '\x1e3\x1estep 1\n'; printf '\x1e3\x1eoh\n' >&2")]))
    assert outcome[0] == 0
    assert out == "[node-0 rank 3] step 1\n"
    assert err == "[node-0 rank 3] oh\n"


def test_one_failure_stops_the_others(supervise: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    stubborn = "trap '' TERM; " + FOR_EVER + "; while true; do sleep 0.1; done"
    fails = f"while [[ ! -e {tmp_path}/a-orphan ]]; do sleep 0.05; done; exit 3"
    outcome, _, _ = finish(supervise([bash(stubborn, "a"), bash(fails)]))
    assert outcome == [1, "torchrun on node-1 ended with 3", True]
    assert_gone(wait_for_files(tmp_path, "a", "a-orphan"), 1)


def test_a_rank_is_named_with_its_reason(supervise: Callable[..., subprocess.Popen[str]]) -> None:
    report = json.dumps({"rank": 5, "exit": 1, "message": "ValueError: row 17", "traceback": "Traceback"})
    outcome, _, _ = finish(supervise([bash(f"echo '{report}' > $COLOSSAL_LLAMA2_NODE_DIR/failure.json; exit 1")]))
    assert outcome == [1, "rank 5 on node-0 failed (exit code 1): ValueError: row 17", True]


def test_a_users_mistake_is_not_tried_again(supervise: Callable[..., subprocess.Popen[str]]) -> None:
    report = json.dumps({"rank": 0, "exit": 2, "message": "error: no", "traceback": ""})
    outcome, _, _ = finish(supervise([bash(f"echo '{report}' > $COLOSSAL_LLAMA2_NODE_DIR/failure.json; exit 1")]))
    assert outcome == [2, "", False]


def test_a_dead_host_keeps_the_others_from_starting(
    supervise: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    outcome, _, _ = finish(supervise([bash("touch $PIDS/started"), bash("true")], ["node-0", "dead-1"]))
    assert outcome[0] == 1
    assert outcome[1].startswith("dead-1: cannot be started (exit code 255): ssh: connect to host dead-1")
    assert not (tmp_path / "started").exists()


def test_a_command_that_is_not_there(supervise: Callable[..., subprocess.Popen[str]]) -> None:
    outcome, _, _ = finish(supervise([["/no/such/python"]]))
    assert outcome[0] == 1
    assert "/no/such/python cannot be started" in outcome[1]
    assert not outcome[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything(
    supervise: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: int
) -> None:
    process = supervise([bash(FOR_EVER, "a"), bash(FOR_EVER, "b")])
    pids = wait_for_files(tmp_path, "a", "a-orphan", "b", "b-orphan")
    process.send_signal(number)
    outcome, _, _ = finish(process)
    assert outcome[0] == 128 + (signal.SIGTERM if number == signal.SIGHUP else number)
    assert not outcome[2]
    assert_gone(pids, 1)


def test_nothing_survives_a_launcher_that_is_killed(
    supervise: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = supervise([bash(FOR_EVER, "a"), bash("trap '' TERM; " + FOR_EVER, "b")])
    pids = wait_for_files(tmp_path, "a", "a-orphan", "b", "b-orphan")
    process.kill()
    process.communicate()
    assert_gone(pids)


def test_nothing_waits_for_a_launcher_that_is_silent(
    supervise: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """A stopped process sends nothing, like one behind a cut cable; its connections are still open."""
    process = supervise([bash(FOR_EVER, "a")], silence=3.0)
    pids = wait_for_files(tmp_path, "a", "a-orphan")
    process.send_signal(signal.SIGSTOP)
    try:
        assert_gone(pids)
    finally:
        process.kill()
        process.communicate()


def test_a_silent_host_is_given_up(supervise: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = supervise([bash(FOR_EVER, "a"), bash(FOR_EVER, "b")], silence=3.0)
    job_a, job_b, orphan = wait_for_files(tmp_path, "a", "b", "b-orphan")
    watchdog = psutil.Process(job_b).parent()
    assert watchdog is not None
    watchdog.suspend()
    began = time.monotonic()
    outcome, _, _ = finish(process)
    assert outcome == [1, "node-1 has not been heard of for 3 s: it is down, or cut off", True]
    assert time.monotonic() - began < 15
    assert_gone([job_a], 1)
    watchdog.resume()
    assert_gone([job_b, orphan])


@pytest.mark.long
def test_a_terminal_held_up_harms_nobody(supervise: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """Ctrl-S, or a pager: nobody reads for longer than silence may last, while a rank prints without end."""
    flood = r"""yes "$(printf '\x1e0\x1e%01000d' 1)" | head -n 25000; echo $$ > $PIDS/flooded"""
    process = supervise([bash(flood), bash("sleep 6")], silence=3.0)
    time.sleep(8)
    assert not (tmp_path / "flooded").exists(), "the job waits for its terminal"
    outcome, out, err = finish(process)
    assert outcome == [0, "", False], err
    assert out.count("\n") == 25_000
