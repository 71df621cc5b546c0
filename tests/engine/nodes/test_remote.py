"""Getting a command to a host: what arrives is what was meant, whatever is in it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from colossal_llama2.engine.nodes.hostfile import Host
from colossal_llama2.engine.nodes.remote import Ssh, is_here, module_command, ssh_command

NASTY = [
    "a b",
    "it's",
    '"q"',
    "$(touch gone)",
    "`touch gone`",
    "new\nline",
    "",
    "*",
    "~",
    "$HOME",
    "\\",
    "-x",
    ";",
    "汉",
]
ECHO = [sys.executable, "-c", "import json, os, sys; print(json.dumps([os.getcwd(), sys.argv[1:]]))"]


def test_arguments_and_directory_pass_whole(stub_ssh: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it's a $(folder)"
    folder.mkdir()
    command = ssh_command(Host("node"), [*ECHO, *NASTY], folder, Ssh())
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [str(folder), NASTY]
    assert list(folder.iterdir()) == []


def test_what_ssh_is_told(tmp_path: Path) -> None:
    command = ssh_command(Host("fd00::1", user="me", port=2222), ["true"], tmp_path, Ssh(tmp_path / "config", 7, 20.0))
    assert command[: command.index("--")].count("-o") == 8
    assert command[command.index("--") + 1] == "me@fd00::1"
    assert command[command.index("-p") + 1] == "2222"
    assert command[command.index("-F") + 1] == str(tmp_path / "config")
    told = {command[index + 1] for index, word in enumerate(command) if word == "-o"}
    assert {"BatchMode=yes", "ConnectTimeout=7", "ServerAliveInterval=5", "ServerAliveCountMax=4"} <= told


def test_this_machine_needs_no_ssh() -> None:
    for name in ("localhost", "127.0.0.1", "::1", socket.gethostname()):
        assert is_here(Host(name)), name
    for host in (Host("localhost", user="me"), Host("localhost", port=2222), Host("127.0.0.2"), Host("203.0.113.7")):
        assert not is_here(host), host
    assert module_command(Host("localhost"), "some.module", Ssh())[0] == sys.executable


def test_a_name_that_nobody_knows_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert not is_here(Host("no-such-host"))
