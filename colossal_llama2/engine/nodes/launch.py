"""`tools/launch.py`: the same script on every host of a hostfile, held together from the first line to the last."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama2 import cli
from colossal_llama2.engine.nodes import frames
from colossal_llama2.engine.nodes.hostfile import Host, ranks_per_host, read_hostfile
from colossal_llama2.engine.nodes.node import Node, Outcome
from colossal_llama2.engine.nodes.printer import Printer
from colossal_llama2.engine.nodes.remote import SILENCE_SECONDS, Ssh, module_command
from colossal_llama2.engine.nodes.restarts import Restarts
from colossal_llama2.engine.nodes.signals import StopSignals
from colossal_llama2.engine.nodes.supervisor import Supervisor
from colossal_llama2.errors import InputError

_WATCHDOG = "colossal_llama2.engine.nodes.watchdog"
_TORCHRUN = "colossal_llama2.engine.torchrun"


@dataclass(frozen=True)
class LaunchSettings:
    """Start a script with torchrun on every host of a hostfile, or on this machine alone.

    The script and its arguments follow after `--`. Every host needs the same code, python and data under the same
    paths, and ssh without a password from here. When one rank or host fails all are stopped.
    """

    hostfile: Path | None = None
    """Hosts to start on, in the order of their node ranks (default: this machine alone); see docs/launching.md."""
    nproc_per_node: int | None = None
    """Ranks on every host (default: the slots=N that all hosts of the hostfile have)."""
    master_addr: str = ""
    """Address under which the other hosts reach the first one (default: its name in the hostfile)."""
    master_port: int | None = None
    """Port on the first host where the ranks find one another (default: a free one)."""
    forward_env: str = ""
    """Environment variables that other hosts get from here, as NAME,NAME; nothing else is passed on."""
    max_restarts: int = 0
    """How often to start again after a failure; `train.py` then goes on from its last whole checkpoint."""
    restart_seconds: float = 10.0
    """Pause before a restart: a host that went down needs time to come back."""
    ssh_config: Path | None = None
    """Configuration file for ssh (default: ssh's own)."""
    connect_seconds: int = 15
    """How long a host may take to answer ssh."""
    silence_seconds: float = SILENCE_SECONDS
    """How long a host may be silent before it counts as lost, in seconds; no less than 6."""
    stop_seconds: float = 300.0
    """How long the ranks have after a SIGTERM to save a checkpoint, in seconds."""


def take_script(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Cut a command line at its first ``--`` into the launcher's own part and the script with its arguments."""
    if "--" not in arguments:
        return list(arguments), []
    cut = list(arguments).index("--")
    return list(arguments[:cut]), list(arguments[cut + 1 :])


def main(settings: LaunchSettings, script: Sequence[str], stop: StopSignals | None = None) -> int:
    """Start, and start again if asked to; return 0, 2 for a user's mistake, 1 for a failure, 128 + N for a signal.

    Args:
        settings: where, and how often.
        script: its path and arguments.
        stop: who listens for signals, for one who launches several scripts in turn.
    """
    hosts, nproc = check(settings, script)
    master = _master_address(settings, hosts)
    stop = stop or StopSignals(settings.stop_seconds)
    restarts = Restarts(script, Path.cwd())
    command = list(script)
    for attempt in range(settings.max_restarts + 1):
        printer = Printer(name_hosts=settings.hostfile is not None)
        outcome = _start(settings, (hosts, nproc, master), command, printer, stop)
        _tell(outcome, printer)
        hopeless = not outcome.may_restart and not (outcome.is_unreachable and attempt)
        if hopeless or attempt == settings.max_restarts or stop.wait(settings.restart_seconds):
            break
        command, how = restarts.command()
        printer.note(f"restart {attempt + 1} of {settings.max_restarts}, {how}")
    return outcome.code


def check(settings: LaunchSettings, script: Sequence[str]) -> tuple[list[Host], int]:
    """Refuse what cannot be launched; return the hosts and the ranks on each.

    Raises:
        InputError: a flag, the script, or a line of the hostfile.
    """
    _check(settings, script)
    hosts = [Host("localhost")] if settings.hostfile is None else read_hostfile(settings.hostfile)
    return hosts, ranks_per_host(hosts, settings.nproc_per_node, settings.hostfile or Path("hostfile"))


def _check(settings: LaunchSettings, script: Sequence[str]) -> None:
    if not script:
        raise InputError("no script", remedy="write it after two dashes: tools/launch.py ... -- train.py ...")
    if not Path(script[0]).is_file():
        raise InputError("no such script", path=script[0], remedy="name the script after the two dashes")
    if settings.hostfile is None and settings.nproc_per_node is None:
        raise InputError("neither --hostfile nor --nproc_per_node is given", remedy="pass --nproc_per_node N")
    least = {
        "nproc_per_node": (1 if settings.nproc_per_node is None else settings.nproc_per_node, 1),
        "max_restarts": (settings.max_restarts, 0),
        "restart_seconds": (settings.restart_seconds, 0),
        "connect_seconds": (settings.connect_seconds, 1),
        "silence_seconds": (settings.silence_seconds, 3 * frames.BEAT_SECONDS),
        "stop_seconds": (settings.stop_seconds, 0),
        "master_port": (1 if settings.master_port is None else settings.master_port, 1),
    }
    for name, (value, smallest) in least.items():
        if not smallest <= value < 1e9:
            raise InputError(f"--{name} is {value}", remedy=f"give at least {smallest:g}")
    if (settings.master_port or 0) > 65535:
        raise InputError(f"--master_port is {settings.master_port}", remedy="give a port up to 65535")
    if settings.ssh_config is not None and not settings.ssh_config.is_file():
        raise InputError("no such file", path=settings.ssh_config, remedy="name a configuration file of ssh")
    for name in cli.comma_separated(settings.forward_env):
        if name not in os.environ:
            raise InputError(f"--forward_env names {name}, which is not set here", remedy="set it, or leave it out")


def _start(
    settings: LaunchSettings,
    world: tuple[Sequence[Host], int, str],
    script: Sequence[str],
    printer: Printer,
    stop: StopSignals,
) -> Outcome:
    ssh = Ssh(
        settings.ssh_config and settings.ssh_config.absolute(), settings.connect_seconds, settings.silence_seconds
    )
    hosts, nproc, master = world

    def job_of(number: int, free_port: int) -> dict[str, Any]:
        rendezvous = {
            "nnodes": len(hosts),
            "node_rank": number,
            "nproc_per_node": nproc,
            "master_addr": master,
            "master_port": settings.master_port or free_port,
        }
        flags = [word for name, value in rendezvous.items() for word in (f"--{name}", str(value))]
        # torchrun replaces ${local_rank} in the arguments, and takes two dollars for one
        arguments = [argument.replace("$", "$$") for argument in script[1:]]
        return {
            "argv": [sys.executable, "-m", _TORCHRUN, *flags, "--", script[0], *arguments],
            "directory": str(Path.cwd()),
            "env": _environment(settings),
            "silence": settings.silence_seconds,
        }

    nodes = [Node(host.label, module_command(host, _WATCHDOG, ssh)) for host in hosts]
    return Supervisor(nodes, job_of, printer, settings.silence_seconds, settings.connect_seconds).run(stop)


def _environment(settings: LaunchSettings) -> dict[str, str]:
    forwarded = {name: os.environ[name] for name in cli.comma_separated(settings.forward_env)}
    return {**forwarded, "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": frames.RANK_MARK}


def _master_address(settings: LaunchSettings, hosts: Sequence[Host]) -> str:
    if settings.master_addr:
        return settings.master_addr
    first = hosts[0].name
    if first in ("localhost", "127.0.0.1", "::1") and len(hosts) > 1:
        raise InputError(
            f"the other hosts cannot reach the first one as {first}",
            path=settings.hostfile,
            line=hosts[0].line,
            remedy="write its name in the network there, or pass --master_addr",
        )
    return "127.0.0.1" if first == "localhost" else first


def _tell(outcome: Outcome, printer: Printer) -> None:
    if outcome.code == cli.EXIT_USER_MISTAKE:
        printer.drop()
        return
    printer.release()
    if outcome.problem:
        if outcome.traceback:
            printer.note(outcome.traceback.rstrip())
        printer.note(f"error: {outcome.problem}")
