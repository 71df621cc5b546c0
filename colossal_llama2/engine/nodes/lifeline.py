"""Nothing outlives what it was started for: parents, children, and connections that have gone silent."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
IDLE_SECONDS, PROBE_SECONDS, PROBES = 15, 5, 3
UNANSWERED_MILLISECONDS = 30_000
_LOOK_EVERY_SECONDS = 5.0


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it is gone; without effect outside Linux."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its own, so that `descendants` finds them all (Linux)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants() -> list[psutil.Process]:
    """Return the living processes below this one, in whatever session or group they are."""
    found = psutil.Process().children(recursive=True)
    alive = []
    for process in found:
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def kill_descendants(seconds: float = 10.0) -> list[int]:
    """Kill every process below this one until none is left; return the pids that withstood it for so long."""
    deadline = time.monotonic() + seconds
    while left := descendants():
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        if time.monotonic() > deadline:
            return [process.pid for process in left]
        time.sleep(0.02)
    return []


def reap_orphans() -> None:
    """Take note of the adopted children that have ended, or they stay in the list of processes as zombies.

    Only for when no `subprocess.Popen` is waited for any more: it would miss its exit code.
    """
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def watch_connections() -> None:
    """Let the kernel end this process's network connections whose other side is silent, from now on, in about 30 s.

    A peer that loses its power or its network says no goodbye, and TCP waits for it for 15 minutes with data under way
    and for ever without; gloo leaves it at that. Libraries open connections at any time, so a thread looks again every
    few seconds. The other side's kernel answers the probes: a peer that computes for hours is not silent. One that is
    frozen as a whole for that long, with more sent to it than it has room for, is taken for dead.
    """
    threading.Thread(target=_watch_for_ever, name="watch_connections", daemon=True).start()


def _watch_for_ever() -> None:
    known: dict[int, int] = {}
    while True:
        with suppress(OSError):
            known = _guard_new_connections(known)
        time.sleep(_LOOK_EVERY_SECONDS)


def _guard_new_connections(known: dict[int, int]) -> dict[int, int]:
    """Set keep-alive on every TCP socket of this process that was not there before; known: descriptor to inode."""
    seen: dict[int, int] = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  names alone are wanted, and are numbers
        descriptor = int(name)
        with suppress(OSError):
            status = os.fstat(descriptor)
            if not stat.S_ISSOCK(status.st_mode):
                continue
            if known.get(descriptor) != status.st_ino:
                _guard(descriptor)
            seen[descriptor] = status.st_ino
    return seen


def _guard(descriptor: int) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        internet = connection.family in (socket.AF_INET, socket.AF_INET6)
        if not internet or connection.type != socket.SOCK_STREAM:
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_MILLISECONDS)


def _prctl(option: int, value: int) -> None:
    if not Path("/proc/self").exists():
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
