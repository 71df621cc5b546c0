"""Two hosts on one machine: train across them, cut one off in mid-run, go on from the checkpoint to the same losses.

    sudo python benchmarks/two_hosts.py [--only CASE ...] [--keep DIR]     # Linux, root; no network is needed

The hosts are network namespaces with an ssh server each (`two_namespaces.py`). The raw result goes to
benchmarks/results/two_hosts.json.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from benchmarks.tiny_inputs import make_tiny_inputs
from benchmarks.two_namespaces import ADDRESSES, FAR, NEAR, TwoHosts, two_hosts, wait_for, why_not
from colossal_llama2 import cli
from colossal_llama2.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "two_hosts.json"
STEPS, SAVE_EVERY, CUT_AFTER = 120, 20, 50
GIVE_UP_SECONDS = 150


@dataclass
class Bench:
    """What every case needs.

    Attributes:
        hosts: the two of them.
        work: where runs are saved.
        model_dir: what is trained.
        corpus_dir: on what.
    """

    hosts: TwoHosts
    work: Path
    model_dir: Path
    corpus_dir: Path

    def train_flags(self, name: str) -> list[str]:
        """Spell the script and its arguments for a run of that name."""
        flags = {
            "pretrained": self.model_dir,
            "dataset": self.corpus_dir,
            "max_length": 48,
            "save_dir": self.work / name,
            "save_interval": SAVE_EVERY,
            "log_interval": 20,
            "max_steps": STEPS,
            "num_epochs": 100,
            "mixed_precision": "bf16",
            "lr": 1e-2,
        }
        return ["train.py", *(word for flag, value in flags.items() for word in (f"--{flag}", str(value)))]

    def launcher(self, script: list[str], *flags: str) -> list[str]:
        """Spell tools/launch.py on the near host for both."""
        hostfile = self.work / "hostfile"
        hostfile.write_text(f"# two hosts\n{ADDRESSES[NEAR]} slots=1\n{ADDRESSES[FAR]}  slots=1  # the far one\n")
        own = ["--hostfile", str(hostfile), "--ssh_config", str(self.hosts.ssh_config)]
        forward = ["--forward_env", "GLOO_SOCKET_IFNAME,OMP_NUM_THREADS,CUDA_VISIBLE_DEVICES"]
        return self.hosts.inside(NEAR, [sys.executable, "tools/launch.py", *own, *forward, *flags, "--", *script])

    def colossalai_run(self, script: list[str]) -> list[str]:
        """Spell `colossalai run` on the near host for both."""
        hostfile = self.work / "plain_hostfile"
        hostfile.write_text("".join(f"{address}\n" for address in ADDRESSES))
        program = [
            str(Path(sys.executable).parent / "colossalai"),
            "run",
            "--nproc_per_node",
            "1",
            "--master_port",
            "29517",
        ]
        return self.hosts.inside(NEAR, [*program, "--hostfile", str(hostfile), *script])

    def torchrun(self, number: int, script: list[str]) -> list[str]:
        """Spell one host's torchrun, as a scheduler would start it."""
        where = [
            "--nnodes",
            "2",
            "--node_rank",
            str(number),
            "--master_addr",
            ADDRESSES[NEAR],
            "--master_port",
            "29518",
        ]
        return self.hosts.inside(number, [sys.executable, "-m", "torch.distributed.run", *where, *script])

    def curve(self, name: str) -> list[list[float]]:
        """Return the logged steps of a run."""
        path = self.work / name / "run" / "metrics.jsonl"
        if not path.is_file():
            return []
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        return [[line[key] for key in ("step", "loss", "grad_norm", "lr", "tokens")] for line in lines]

    def start(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        """Start a command in an environment that holds little but what it needs."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
        own = {
            "HOME": str(self.hosts.home),
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
        with (self.work / f"{log}.log").open("wb") as output:
            return subprocess.Popen(command, cwd=ROOT, env={**kept, **own}, stdout=output, stderr=output)

    def finish(self, processes: list[subprocess.Popen[bytes]], seconds: float = 400) -> list[int | None]:
        """Wait for processes; None for one that is still there after that."""
        deadline = time.monotonic() + seconds
        codes: list[int | None] = []
        for process in processes:
            try:
                codes.append(process.wait(timeout=max(0.1, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                codes.append(None)
        return codes

    def said(self, log: str, lines: int = 1) -> str:
        """Return the last lines that a command printed."""
        return "\n".join((self.work / f"{log}.log").read_text(errors="replace").rstrip().splitlines()[-lines:])


def whole_run(bench: Bench) -> dict[str, Any]:
    """Train without a disturbance: the curve that all others are held to."""
    began = time.monotonic()
    codes = bench.finish([bench.start(bench.launcher(bench.train_flags("whole")), "whole")])
    return {"exit_code": codes[0], "seconds": round(time.monotonic() - began, 1), "steps": len(bench.curve("whole"))}


def cut_off(bench: Bench, name: str, commands: list[list[str]], which: int) -> dict[str, Any]:
    """Cut a host off in mid-run, see how long it takes until everything has ended, reconnect, and resume."""
    processes = [bench.start(command, f"{name}-{number}") for number, command in enumerate(commands)]
    wait_for(lambda: len(bench.curve(name)) >= CUT_AFTER, 200, f"{name} does not train")
    bench.hosts.cut(which)
    cut_at = time.monotonic()
    ended: dict[str, float | None] = {"commands": None, "near_host": None, "far_host": None}
    checks: dict[str, Callable[[], bool]] = {
        "commands": lambda: all(process.poll() is not None for process in processes),
        "near_host": lambda: not bench.hosts.job_pids(NEAR),
        "far_host": lambda: not bench.hosts.job_pids(FAR),
    }
    while None in ended.values() and time.monotonic() - cut_at < GIVE_UP_SECONDS:
        for key, check in checks.items():
            if ended[key] is None and check():
                ended[key] = round(time.monotonic() - cut_at, 1)
        time.sleep(0.1)
    codes = bench.finish(processes, 0.1)
    bench.hosts.kill_jobs()
    bench.hosts.connect(which)
    time.sleep(1)
    return {
        "steps_before_the_cut": CUT_AFTER,
        "seconds_to_end": ended,
        "exit_codes": codes,
        "last_line": bench.said(f"{name}-0"),
        **resume(bench, name),
    }


def resume(bench: Bench, name: str) -> dict[str, Any]:
    """Go on with a run from its last checkpoint; tell whether it gives what the undisturbed run gave."""
    script = [*bench.train_flags(name), "--load_checkpoint", "latest"]
    codes = bench.finish([bench.start(bench.launcher(script), f"{name}-again")])
    return {"resumed_exit_code": codes[0], "losses_equal": bench.curve(name) == bench.curve("whole") != []}


def cut_far(bench: Bench) -> dict[str, Any]:
    """The launcher is on the host that stays."""
    return cut_off(bench, "cut_far", [bench.launcher(bench.train_flags("cut_far"))], FAR)


def cut_near(bench: Bench) -> dict[str, Any]:
    """The launcher is on the host that is cut off."""
    return cut_off(bench, "cut_near", [bench.launcher(bench.train_flags("cut_near"))], NEAR)


def cut_torchrun(bench: Bench) -> dict[str, Any]:
    """No launcher: torchrun by itself on each host."""
    script = bench.train_flags("cut_torchrun")
    return cut_off(bench, "cut_torchrun", [bench.torchrun(number, script) for number in (NEAR, FAR)], FAR)


def cut_colossalai(bench: Bench) -> dict[str, Any]:
    """The same with `colossalai run`."""
    return cut_off(bench, "cut_colossalai", [bench.colossalai_run(bench.train_flags("cut_colossalai"))], FAR)


def whole_colossalai(bench: Bench) -> dict[str, Any]:
    """Train without a disturbance under `colossalai run`."""
    name = "whole_colossalai"
    codes = bench.finish([bench.start(bench.colossalai_run(bench.train_flags(name)), name)])
    return {"exit_code": codes[0], "losses_equal": bench.curve(name) == bench.curve("whole") != []}


def killed_rank(bench: Bench) -> dict[str, Any]:
    """Kill the far rank; `--max_restarts 1` goes on by itself."""
    name = "killed_rank"
    process = bench.start(
        bench.launcher(bench.train_flags(name), "--max_restarts", "1", "--restart_seconds", "0"), name
    )
    wait_for(lambda: len(bench.curve(name)) >= CUT_AFTER, 200, f"{name} does not train")
    (rank,) = [pid for pid in bench.hosts.job_pids(FAR) if _is_rank(pid)]
    os.kill(rank, signal.SIGKILL)
    killed_at = time.monotonic()
    wait_for(lambda: "restart 1 of 1" in bench.said(name, 1000), 100, "no restart")
    seconds = round(time.monotonic() - killed_at, 1)
    codes = bench.finish([process])
    (error,) = [line for line in bench.said(name, 1000).splitlines() if line.startswith("error:")]
    equal = bench.curve(name) == bench.curve("whole") != []
    return {"seconds_to_restart": seconds, "error": error, "exit_code": codes[0], "losses_equal": equal}


CASES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    case.__name__: case for case in (cut_far, cut_near, killed_rank, cut_torchrun, whole_colossalai, cut_colossalai)
}


def measure(work: Path, cases: Sequence[str]) -> dict[str, Any]:
    """Make two hosts and go through the cases named, after a run without a disturbance."""
    model_dir, corpus_dir = make_tiny_inputs(work)
    results: dict[str, Any] = {}
    with two_hosts(work) as hosts:
        bench = Bench(hosts, work, model_dir, corpus_dir)
        for name, case in {"whole_run": whole_run, **{name: CASES[name] for name in cases}}.items():
            results[name] = case(bench)
            print(name, json.dumps(results[name]), flush=True)
            hosts.kill_jobs()
    return results


def _is_rank(pid: int) -> bool:
    with suppress(OSError):
        return b"RANK=" in Path(f"/proc/{pid}/environ").read_bytes()
    return False


@dataclass(frozen=True)
class TwoHostsSettings:
    """Train across two hosts made of network namespaces, and cut one off in mid-run; needs root."""

    only: tuple[str, ...] = tuple(CASES)
    """Cases to go through; the result is written when all are."""
    keep: Path | None = None
    """Folder for the runs and their logs, kept (default: a temporary one)."""


def main(settings: TwoHostsSettings) -> int:
    """Measure, and write the result down."""
    if unknown := set(settings.only) - set(CASES):
        raise InputError(f"no case is called {min(unknown)}", remedy=f"choose from {', '.join(CASES)}")
    if reason := why_not():
        raise InputError(reason, remedy="run it as root on Linux")
    with tempfile.TemporaryDirectory() as temporary:
        work = (settings.keep or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        results = measure(work, settings.only)
    if set(settings.only) == set(CASES):
        RESULT.write_text(json.dumps({"machine": describe_machine(), **results}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    cli.run(TwoHostsSettings, main)
