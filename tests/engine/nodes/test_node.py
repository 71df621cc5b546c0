"""What is told to a host arrives whole and in order, however slowly it listens."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from colossal_llama2.engine.nodes import frames
from colossal_llama2.engine.nodes.node import Node

LATE_LISTENER = "import sys, time; time.sleep(1); sys.stdout.buffer.write(sys.stdin.buffer.read())"
JOB = {"argv": ["x" * 1000] * 300}  # more than four pipes full
STOP = {"stop": 15, "grace": 1.0}


@pytest.fixture
def node() -> Iterator[Node]:
    """Give a host that reads nothing yet, through the kind of pipe that the supervisor makes."""
    process = subprocess.Popen(
        [sys.executable, "-c", LATE_LISTENER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    node = Node("late", [], process)
    yield node
    node.close()
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def heard_by(node: Node) -> list[bytes]:
    """Send what is left, end the connection, and return the lines that arrived."""
    assert node.process is not None
    assert node.process.stdout is not None
    deadline = time.monotonic() + 20
    while node.send():
        assert time.monotonic() < deadline, "it was never taken"
        time.sleep(0.01)
    node.close()
    return node.process.stdout.read().splitlines(keepends=True)


def test_what_does_not_fit_is_sent_later(node: Node) -> None:
    for frame in (JOB, frames.BEAT, STOP):
        node.tell(frame)
    assert node.send(), "the pipe is full: a test that could not fail otherwise"
    assert heard_by(node) == [frames.encode(frame) for frame in (JOB, frames.BEAT, STOP)]


def test_two_threads_do_not_cut_into_one_another(node: Node) -> None:
    told = [{"argv": [letter * 5000] * 5} for letter in "ab"]

    def tell_often(frame: dict[str, list[str]]) -> None:
        for _ in range(40):
            node.tell(frame)

    threads = [threading.Thread(target=tell_often, args=(frame,)) for frame in told]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    heard = heard_by(node)
    assert sorted(heard) == sorted(frames.encode(frame) for frame in told for _ in range(40))


def test_a_host_that_is_gone_is_told_nothing(node: Node) -> None:
    assert node.process is not None
    node.tell(JOB)
    node.process.kill()
    node.process.wait()
    node.tell(STOP)
    assert not node.send()
    node.close()
    node.tell(STOP)
    assert not node.send()
