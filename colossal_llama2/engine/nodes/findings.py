"""The doctor's judgement: from what the hosts answered to rows of a table, each with its remedy."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from colossal_llama2.engine.nodes.hostfile import Host
from colossal_llama2.engine.nodes.remote import ROOT, is_here

ORDER = (
    "ssh",
    "python",
    "packages",
    "code",
    "GPUs",
    "clock",
    "master port",
    "input",
    "save folder",
    "disk",
    "environment",
)
_MOST_SECONDS_APART = 2.0
_CHECKPOINT_PER_WEIGHT_BYTE = 6  # of half-precision weights: fp32 masters and two moments


@dataclass(frozen=True)
class Finding:
    """A row of the table.

    Attributes:
        check: what was looked at, one of `ORDER`.
        host: where.
        ok: whether it is as it should be.
        found: what is there.
        remedy: what to do about it, empty when nothing.
    """

    check: str
    host: str
    ok: bool
    found: str
    remedy: str = ""


def table(found: Sequence[Finding]) -> str:
    """Write the rows under one another, in columns."""
    rows = [("check", "host", "", "found", "remedy")]
    rows += [(one.check, one.host, "ok" if one.ok else "BAD", one.found, one.remedy) for one in found]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join([*map(str.ljust, row[:4], widths), row[4]]).rstrip() for row in rows)


def reachable(host: Host, problem: str, exit_code: int | None) -> Finding:
    """Judge whether the probe could be run at all, and where it stopped."""
    if not problem:
        return Finding("ssh", host.label, True, "this machine" if is_here(host) else "connects")
    if exit_code == 255:
        return Finding("ssh", host.label, False, problem, f"make `ssh {host.ssh_target} true` work without a question")
    if "No module named" in problem:
        return Finding("code", host.label, False, problem, f"copy this project to {ROOT} there")
    if exit_code in (126, 127):
        return Finding("python", host.label, False, problem, f"install the environment at {sys.executable} there")
    if exit_code is not None and "cd" in problem:
        return Finding("code", host.label, False, problem, f"copy this project to {ROOT} there")
    return Finding("ssh", host.label, False, problem, f"try `ssh {host.ssh_target} {shlex.quote(sys.executable)} -V`")


def same_software(host: Host, answer: dict[str, Any], first: Host, expected: dict[str, Any]) -> list[Finding]:
    """Compare python, packages and code with the first host's."""
    found = [
        Finding(
            "python",
            host.label,
            answer["python"] == expected["python"],
            answer["python"],
            "" if answer["python"] == expected["python"] else f"install {expected['python']}, as on {first.label}",
        )
    ]
    mine, theirs = answer["packages"], expected["packages"]
    other = [f"{name} {mine[name] or 'missing'}, not {theirs[name]}" for name in theirs if mine[name] != theirs[name]]
    missing = [name for name in theirs if mine[name] is None and theirs[name] is None]
    problems = other + [f"{name} missing" for name in missing]
    text = (
        "; ".join(problems)
        or f"torch {mine['torch']}, transformers {mine['transformers']}, colossalai {mine['colossalai']}"
    )
    remedy = "pip install -r requirements.txt; pip install --no-deps -r requirements-engine.txt" if problems else ""
    found.append(Finding("packages", host.label, not problems, text, remedy))
    same = answer["code"] == expected["code"]
    remedy = "" if same else f"copy {ROOT} from {first.label} there"
    return [*found, Finding("code", host.label, same, f"hash {answer['code']}", remedy)]


def gpus(host: Host, answer: dict[str, Any], expected: dict[str, Any], ranks: int | None) -> Finding:
    """Judge number and kind of the GPUs."""
    mine = answer["gpus"]
    kinds = " and ".join(f"{mine.count(kind)} x {kind} MiB" for kind in dict.fromkeys(mine))
    if not mine and not expected["gpus"]:
        return Finding("GPUs", host.label, True, "none: the ranks run on the CPU")
    if ranks is not None and len(mine) < ranks:
        return Finding(
            "GPUs", host.label, False, kinds or "none", f"{ranks} ranks need {ranks}: pass --nproc_per_node {len(mine)}"
        )
    if answer["torch_gpus"] != len(mine):
        return Finding(
            "GPUs",
            host.label,
            False,
            f"{kinds}; torch can use: {answer['torch_gpus']}",
            "install a torch for this driver's CUDA",
        )
    if mine != expected["gpus"]:
        return Finding(
            "GPUs", host.label, False, kinds, "the slowest card sets the pace, the smallest the memory: take equal ones"
        )
    return Finding("GPUs", host.label, True, kinds)


def clock(host: Host, ahead: float) -> Finding:
    """Judge the clock: times in logs are compared across hosts, and so is who failed first."""
    ok = abs(ahead) <= _MOST_SECONDS_APART
    text = f"{abs(ahead):.1f} s {'ahead' if ahead > 0 else 'behind'}" if abs(ahead) > 0.5 else "within 0.5 s"
    return Finding(
        "clock", host.label, ok, text, "" if ok else "start a time service there (chrony, systemd-timesyncd)"
    )


def input_folder(host: Host, path: Any, answer: dict[str, Any], first: Host, expected: dict[str, Any]) -> Finding:
    """Judge whether an input is there, and the same as on the first host."""
    mine, theirs = answer["inputs"][str(path)], expected["inputs"][str(path)]
    if mine["problem"]:
        return Finding("input", host.label, False, f"{path} {mine['problem']}", "mount or copy it under this path")
    if not theirs["problem"] and mine["hash"] != theirs["hash"]:
        return Finding("input", host.label, False, f"{path} is another one", f"copy it from {first.label}")
    return Finding("input", host.label, True, str(path))


def save_folder(
    host: Host, answer: dict[str, Any], seen: Sequence[str], marks: Sequence[str], weights: int
) -> list[Finding]:
    """Judge whether the save folder can be written, is one and the same everywhere, and has room."""
    save = answer["save"]
    if save["problem"]:
        return [
            Finding("save folder", host.label, False, f"{save['folder']} {save['problem']}", "make it writable there")
        ]
    unseen = len(set(marks) - set(seen))
    shared = Finding(
        "save folder", host.label, True, f"{save['folder']}, writable" + (", shared" if len(marks) > 1 else "")
    )
    if unseen:
        text = f"{save['folder']}: files of {unseen} of {len(marks)} hosts are not seen here"
        shared = Finding("save folder", host.label, False, text, "mount one file system there on all hosts")
    needed = weights * _CHECKPOINT_PER_WEIGHT_BYTE
    enough = save["free"] > needed
    room = Finding(
        "disk",
        host.label,
        enough,
        f"{save['free'] / 1e9:.0f} GB free" + (f", a checkpoint takes about {needed / 1e9:.1f}" if needed else ""),
        "" if enough else "free space, or save elsewhere",
    )
    return [shared, room]


def connection(host: Host, is_master: bool, port_problem: str, problem: str) -> Finding:
    """Judge the port on which the ranks find one another: free on the first host, reached from the others."""
    if port_problem:
        remedy = "choose another --master_port" if is_master else "see the first host"
        return Finding("master port", host.label, False, port_problem, remedy)
    if problem:
        return Finding(
            "master port",
            host.label,
            False,
            problem,
            "open the ports between the hosts, or pass --master_addr with the right address",
        )
    return Finding("master port", host.label, True, "free and reached" if is_master else "reached")


def environment(variables: Mapping[str, str]) -> list[Finding]:
    """Name this machine's variables that `colossalai run` would trip over, or run as a command; not their values."""
    broken = sorted(name for name, value in variables.items() if any(mark in value for mark in '"`$\\'))
    if not broken:
        return [Finding("environment", "here", True, "nothing that `colossalai run` would trip over")]
    return [
        Finding(
            "environment",
            "here",
            False,
            f"quotes or commands in {', '.join(broken)}",
            "start with tools/launch.py, or as train.example.sh does, with env -i",
        )
    ]
