"""Two hosts on one machine: network namespaces with an ssh server each, and a switch that can cut one off.

A third namespace is the switch. A host is cut off by taking its port there down: neither host is told, as when a cable
is pulled. Needs root on Linux.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
NEAR, FAR = 0, 1  # the host that the launcher runs on, and the other one
_PORT = 22
_IP, _SSH, _KEYGEN = (shutil.which(program) or program for program in ("ip", "ssh", "ssh-keygen"))


def why_not() -> str:
    """Return why two hosts cannot be made on this machine, or nothing."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    for program in ("ip", "ssh"):
        if shutil.which(program) is None:
            return f"needs the command {program}"
    probe = f"probe{os.getpid()}"
    made = subprocess.run([_IP, "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not allowed here ({made.stderr.strip()})"
    bridge = [_IP, "-n", probe, "link", "add", "br0", "type", "bridge"]
    bridged = subprocess.run(bridge, capture_output=True, text=True, check=False)
    subprocess.run([_IP, "netns", "del", probe], check=False)
    return f"bridges are not allowed here ({bridged.stderr.strip()})" if bridged.returncode else ""


class TwoHosts:
    """Two namespaces and the switch between them, with an ssh server in each.

    Args:
        work: folder for keys and configuration.
    """

    def __init__(self, work: Path) -> None:
        self._names = [f"h{os.getpid()}-{number}" for number in (1, 2)]
        self._switch = f"s{os.getpid()}"
        self._work = work
        self._servers: list[subprocess.Popen[bytes]] = []
        self.home = work / "home"
        self.ssh_config = work / "ssh_config"

    def open(self) -> None:
        """Make them."""
        for name in (*self._names, self._switch):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        for number, name in enumerate(self._names):
            _ip(
                "-n",
                name,
                "link",
                "add",
                "eth0",
                "type",
                "veth",
                "peer",
                "name",
                f"port{number}",
                "netns",
                self._switch,
            )
            _ip("-n", name, "addr", "add", f"{ADDRESSES[number]}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", self._switch, "link", "set", f"port{number}", "master", "br0")
            self.connect(number)
        self._make_keys()
        server = [sys.executable, str(ROOT / "benchmarks" / "loopback_sshd.py"), str(_PORT)]
        keys = [str(self._work / "host_key"), str(self.home / ".ssh" / "id_rsa.pub")]
        self._servers = [subprocess.Popen(self.inside(number, [*server, *keys])) for number in (NEAR, FAR)]
        for number in (NEAR, FAR):
            wait_for(lambda number=number: self._answers(number), 30, "the ssh servers do not start")  # type: ignore[misc]

    def close(self) -> None:
        """End everything in them and take them away."""
        for name in self._names:
            for pid in _pids(name):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for server in self._servers:
            server.wait()
        for name in (*self._names, self._switch):
            subprocess.run([_IP, "netns", "del", name], check=False)

    def inside(self, number: int, command: list[str]) -> list[str]:
        """Spell a command so that it runs on a host."""
        return [_IP, "netns", "exec", self._names[number], *command]

    def cut(self, number: int) -> None:
        """Take a host's port on the switch down."""
        _ip("-n", self._switch, "link", "set", f"port{number}", "down")

    def connect(self, number: int) -> None:
        """Take it up (again)."""
        _ip("-n", self._switch, "link", "set", f"port{number}", "up")

    def job_pids(self, number: int) -> list[int]:
        """Return the processes on a host, the ssh server apart."""
        servers = {server.pid for server in self._servers}
        return [pid for pid in _pids(self._names[number]) if pid not in servers]

    def kill_jobs(self) -> None:
        """Kill everything but the ssh servers."""
        for number in (NEAR, FAR):
            for pid in self.job_pids(number):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _make_keys(self) -> None:
        (self.home / ".ssh").mkdir(parents=True, mode=0o700)
        for path in (self.home / ".ssh" / "id_rsa", self._work / "host_key"):
            make = [
                _KEYGEN,
                "-q",
                "-t",
                "rsa",
                "-b",
                "3072",
                "-m",
                "PEM",
                "-N",
                "",
                "-C",
                "two_hosts",
                "-f",
                str(path),
            ]
            subprocess.run(make, check=True)
        self.ssh_config.write_text(
            f"Host *\n  IdentityFile {self.home}/.ssh/id_rsa\n  IdentitiesOnly yes\n"
            f"  StrictHostKeyChecking accept-new\n  UserKnownHostsFile {self.home}/.ssh/known_hosts\n"
        )

    def _answers(self, number: int) -> bool:
        login = [
            _SSH,
            "-F",
            str(self.ssh_config),
            "-o",
            "BatchMode=yes",
            "-o",
            "LogLevel=ERROR",
            ADDRESSES[number],
            "true",
        ]
        return subprocess.run(self.inside(1 - number, login), capture_output=True, check=False).returncode == 0


@contextmanager
def two_hosts(work: Path) -> Iterator[TwoHosts]:
    """Give two hosts, and take them away again."""
    hosts = TwoHosts(work)
    try:
        hosts.open()
        yield hosts
    finally:
        hosts.close()


def wait_for(condition: Callable[[], bool], seconds: float, complaint: str) -> None:
    """Wait until something is true; raise TimeoutError with the complaint when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint)
        time.sleep(0.05)


def _ip(*words: str) -> None:
    subprocess.run([_IP, *words], check=True)


def _pids(namespace: str) -> list[int]:
    listed = subprocess.run([_IP, "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]
