"""How a command gets to a host: directly on this one, over ssh elsewhere, never through an unquoted shell line."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import colossal_llama2
from colossal_llama2.engine.nodes.hostfile import Host

ROOT = Path(colossal_llama2.__file__).resolve().parents[1]
SILENCE_SECONDS = 20.0  # a connection that says nothing for so long is taken for cut
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Ssh:
    """How to log in.

    Attributes:
        config_file: for `ssh -F`, None for ssh's own.
        connect_seconds: how long a host may take to answer.
        silence_seconds: how long a connection may be silent before it counts as cut.
    """

    config_file: Path | None = None
    connect_seconds: int = 15
    silence_seconds: float = SILENCE_SECONDS


def is_here(host: Host) -> bool:
    """Tell whether a host is this machine, so that no ssh is needed; a user or a port given always means ssh."""
    if host.user is not None or host.port is not None:
        return False
    if host.name in _LOCAL_NAMES or host.name == socket.gethostname():
        return True
    return _is_own_address(host.name)


def _is_own_address(name: str) -> bool:
    """Find out whether an address of that name belongs to this machine: only then can a socket be bound to it.

    The loopback network does not count: an address there is often a tunnel's or a container's.
    """
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        if str(address[0]).startswith("127."):
            continue
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return True
        except OSError:
            continue
    return False


def module_command(host: Host, module: str, ssh: Ssh) -> list[str]:
    """Spell the command line that runs a module of this package on a host, under the python and the path used here.

    What the module needs to know goes to its standard input, where no shell and no list of processes sees it.
    """
    argv = [sys.executable, "-m", module]
    return argv if is_here(host) else ssh_command(host, argv, ROOT, ssh)


def ssh_command(host: Host, argv: Sequence[str], directory: Path, ssh: Ssh) -> list[str]:
    """Spell the command line that runs `argv` in a directory of another host.

    No question is ever asked, and a silent connection ends. A shared connection (ControlMaster) is not used: its
    own settings would decide how long silence lasts.
    """
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": str(ssh.connect_seconds),
        "ServerAliveInterval": str(max(1, round(ssh.silence_seconds / 4))),
        "ServerAliveCountMax": "4",
        "ControlMaster": "no",
        "ControlPath": "none",
        "ForwardX11": "no",
        "LogLevel": "ERROR",
    }
    command = ["ssh", "-T", *(["-F", str(ssh.config_file)] if ssh.config_file else [])]
    for name, value in options.items():
        command += ["-o", f"{name}={value}"]
    if host.port is not None:
        command += ["-p", str(host.port)]
    return [*command, "--", host.ssh_target, f"cd {shlex.quote(os.fspath(directory))} && exec {shlex.join(argv)}"]
