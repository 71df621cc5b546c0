"""Nothing outlives what it was started for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from colossal_llama2.engine.nodes import lifeline

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def test_every_connection_is_watched_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        known = lifeline._guard_new_connections({})
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == lifeline.IDLE_SECONDS
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == lifeline.UNANSWERED_MILLISECONDS
        assert client.fileno() in known
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
        lifeline._guard_new_connections(known)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0, "what is known is left alone"
        client.sendall(b"still open")


def test_other_sockets_are_left_alone() -> None:
    left, right = socket.socketpair()
    with left, right, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        lifeline._guard_new_connections({})
        assert datagram.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        left.sendall(b"x")
        assert right.recv(1) == b"x"


def test_descendants_die_in_whatever_session_they_are(tmp_path: Path) -> None:
    script = f"""
import subprocess, sys, time
from colossal_llama2.engine.nodes import lifeline
lifeline.adopt_orphans()
# the middle one ends at once: its child has lost its parent and is in a session of its own
subprocess.run(["bash", "-c", "setsid sleep 1000 & echo $! > {tmp_path}/pid"])
subprocess.Popen(["bash", "-c", "trap '' TERM; while true; do sleep 1; done"])
time.sleep(0.3)
assert len(lifeline.descendants()) >= 2
assert lifeline.kill_descendants() == []
assert lifeline.descendants() == []
time.sleep(0.1)
lifeline.reap_orphans()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_a_child_dies_with_its_parent() -> None:
    child = "import time; from colossal_llama2.engine.nodes import lifeline; lifeline.die_with_parent(); "
    child += "print('up', flush=True); time.sleep(1000)"
    parent = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); "
    parent += "print(p.pid, flush=True); p.wait()"
    started = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    lines = {started.stdout.readline().strip() for _ in range(2)}
    (pid,) = (int(line) for line in lines if line.isdigit())
    os.kill(started.pid, 9)
    started.wait()
    started.stdout.close()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
