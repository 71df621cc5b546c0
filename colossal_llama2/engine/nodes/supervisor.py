"""Holds the hosts of one start together: begins when all are there, and ends all when one has failed or gone."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any

from colossal_llama2.engine.nodes import frames
from colossal_llama2.engine.nodes.node import Node, Outcome
from colossal_llama2.engine.nodes.printer import Printer
from colossal_llama2.engine.nodes.signals import StopSignals

EXIT_USER_MISTAKE = 2
_SECONDS_TO_START = 45.0  # for python on a busy host, after ssh has connected
_GRACE_AFTER_FAILURE = 5.0
_GRACE_AFTER_INTERRUPT = 10.0
_SECONDS_TO_KILL = 12.0  # for a host to report after its grace is over
_KEPT_LINES = 5
_MOST_WAITING = 10_000  # lines; beyond it the hosts wait, as on any slow terminal
_MOST_AT_ONCE = 1_000
_IDLE_SECONDS, _BUSY_SECONDS = 0.2, 0.01


class Supervisor:
    """One start of a job on all hosts.

    Args:
        nodes: in the order of their node ranks.
        job_of: gives the frame that starts a node's job, from its number and a port that is free on the first node.
        printer: shows what the ranks print.
        silence_seconds: how long a host may say nothing.
        connect_seconds: how long ssh may take to connect.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        job_of: Callable[[int, int], dict[str, Any]],
        printer: Printer,
        silence_seconds: float,
        connect_seconds: float,
    ) -> None:
        self._nodes = list(nodes)
        self._job_of = job_of
        self._printer = printer
        self._silence = silence_seconds
        self._start_by = time.monotonic() + connect_seconds + _SECONDS_TO_START
        self._events: queue.Queue[tuple[Node, str, bytes]] = queue.Queue(maxsize=_MOST_WAITING)
        self._looked = time.monotonic()
        self._over = threading.Event()
        self._started = False
        self._outcome: Outcome | None = None
        self._end_by: float | None = None
        self._stopped_by: int | None = None

    def run(self, stop: StopSignals) -> Outcome:
        """Serve until every host is done or gone; nothing is left running that this process can still reach."""
        try:
            for node in self._nodes:
                self._connect(node)
            threading.Thread(target=self._beat, daemon=True).start()
            while any(node.done is None and not node.gone for node in self._nodes):
                unsent = [node for node in self._nodes if not node.gone and node.send()]
                self._take_events(_BUSY_SECONDS if unsent else _IDLE_SECONDS)
                self._check_time()
                self._heed(stop)
                self._printer.release_old()
            return self._conclude()
        finally:
            self._over.set()
            self._disconnect()

    def _beat(self) -> None:
        """Tell the hosts that this process is there, even while a terminal that is held up holds the output up."""
        while not self._over.wait(frames.BEAT_SECONDS):
            for node in self._nodes:
                node.tell(frames.BEAT)

    def _connect(self, node: Node) -> None:
        node.process = subprocess.Popen(
            node.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the launcher, which passes it on in order
        )
        assert node.process.stdin is not None
        os.set_blocking(node.process.stdin.fileno(), False)
        node.heard = time.monotonic()
        assert node.process.stdout is not None
        assert node.process.stderr is not None
        complaints = threading.Thread(target=self._pump, args=(node, node.process.stderr, "complaint"), daemon=True)
        complaints.start()
        threading.Thread(target=self._pump_all, args=(node, node.process.stdout, complaints), daemon=True).start()

    def _pump(self, node: Node, stream: IO[bytes], kind: str) -> None:
        for line in stream:
            self._events.put((node, kind, line.rstrip(b"\r\n")))

    def _pump_all(self, node: Node, stdout: IO[bytes], complaints: threading.Thread) -> None:
        self._pump(node, stdout, "frame")
        complaints.join(timeout=1)  # what ssh complains of comes before the end that it explains
        self._events.put((node, "end", b""))

    def _take_events(self, seconds: float) -> None:
        with suppress(queue.Empty):
            node, kind, line = self._events.get(timeout=seconds)
            for _ in range(_MOST_AT_ONCE):
                self._take(node, kind, line)
                node, kind, line = self._events.get_nowait()
            self._take(node, kind, line)

    def _take(self, node: Node, kind: str, line: bytes) -> None:
        if kind == "end":
            self._lose(node)
            return
        frame = frames.decode(line) if kind == "frame" else None
        if frame is None:
            text = line.decode("utf-8", errors="replace")
            node.complaints = [*node.complaints, text][-_KEPT_LINES:]
            self._printer.show(node.label, None, text, is_error=True)
            return
        node.heard = time.monotonic()
        if "text" in frame:
            self._printer.show(node.label, frame["rank"], frame["text"], is_error=frame["error"])
        elif "ready" in frame:
            node.ready = frame
            if not self._started and all(other.ready for other in self._nodes):
                self._start()
        elif "done" in frame:
            node.done = frame
            node.close()
            self._judge(node, frame)

    def _start(self) -> None:
        self._started = True
        port = (self._nodes[0].ready or {})["ready"]
        for number, node in enumerate(self._nodes):
            node.heard = time.monotonic()
            node.tell(self._job_of(number, port))

    def _judge(self, node: Node, frame: dict[str, Any]) -> None:
        if frame["left"]:
            self._printer.show(node.label, None, f"processes {frame['left']} could not be killed", is_error=True)
        if frame["done"] == 0 or self._outcome is not None:
            return
        failure = frame["failure"]
        if failure is None:
            self._fail(Outcome(1, f"torchrun on {node.label} ended with {frame['done']}", may_restart=True))
        elif failure["exit"] == EXIT_USER_MISTAKE:
            self._fail(Outcome(EXIT_USER_MISTAKE))
        else:
            who = node.label if failure["rank"] is None else f"rank {failure['rank']} on {node.label} failed"
            how = f" (exit code {failure['exit']})" if failure["exit"] > 0 else ""
            text = f"{who}{how}: {failure['message']}"
            self._fail(Outcome(1, text, failure["traceback"], may_restart=failure["rank"] is not None))

    def _lose(self, node: Node) -> None:
        """Take note of a connection's end: at the end of a job it is nothing special."""
        if node.gone:
            return
        node.gone = True
        if node.done is not None:
            return
        assert node.process is not None
        with suppress(subprocess.TimeoutExpired):
            node.process.wait(timeout=1)
        said = "; ".join(filter(None, map(str.strip, node.complaints))) or "nothing was said"
        state = "the connection ended" if node.ready else "cannot be started"
        text = f"{node.label}: {state} (exit code {node.process.poll()}): {said}"
        self._fail(Outcome(1, text, may_restart=node.ready is not None, is_unreachable=node.ready is None))

    def _check_time(self) -> None:
        now = time.monotonic()
        held_up, self._looked = now - self._looked > frames.BEAT_SECONDS, now
        for node in self._nodes:
            if held_up:  # what the hosts said meanwhile may still lie in the queue
                node.heard = now
            if node.done is not None or node.gone or node.process is None:
                continue
            if node.ready is None and now > self._start_by:
                self._give_up(node, "did not start in time")
            elif node.ready is not None and now - node.heard > self._silence:
                self._give_up(node, f"has not been heard of for {self._silence:.0f} s: it is down, or cut off")
            elif self._end_by is not None and now > self._end_by:
                self._give_up(node, "did not report the end of its job")

    def _give_up(self, node: Node, why: str) -> None:
        assert node.process is not None
        node.gone = True
        node.process.kill()
        if self._outcome is None:
            self._fail(Outcome(1, f"{node.label} {why}", may_restart=True))
        else:
            self._printer.note(f"warning: {node.label} {why}")

    def _fail(self, outcome: Outcome) -> None:
        if self._outcome is None:
            self._outcome = outcome
            self._stop_all(signal.SIGTERM, _GRACE_AFTER_FAILURE)

    def _heed(self, stop: StopSignals) -> None:
        """Pass a signal on to every rank; a second one ends the waiting."""
        if stop.number is None or stop.count == 0:
            return
        stop.count, count = 0, stop.count
        if self._stopped_by is None and count == 1:
            self._stopped_by = stop.number
            grace = _GRACE_AFTER_INTERRUPT if stop.number == signal.SIGINT else stop.grace
            self._printer.note(f"{signal.Signals(stop.number).name}: stopping, {grace:.0f} s at most; again to kill")
            self._stop_all(stop.number, grace)
        else:
            self._stopped_by = self._stopped_by or stop.number
            self._stop_all(signal.SIGKILL, 0.0)

    def _stop_all(self, number: int, grace: float) -> None:
        deadline = time.monotonic() + grace + _SECONDS_TO_KILL
        self._end_by = deadline if self._end_by is None else min(deadline, self._end_by)
        for node in self._nodes:
            if node.done is None and not node.gone:
                node.tell({"stop": int(number), "grace": grace})
                if not self._started:
                    node.close()

    def _conclude(self) -> Outcome:
        if self._stopped_by is not None and any(node.done is None or node.done["done"] for node in self._nodes):
            return Outcome(128 + self._stopped_by)
        return self._outcome or Outcome(0)

    def _disconnect(self) -> None:
        for node in self._nodes:
            node.close()
        deadline = time.monotonic() + _SECONDS_TO_KILL
        for node in self._nodes:
            if node.process is None:
                continue
            try:
                node.process.wait(timeout=0 if node.gone else max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                node.process.kill()
                node.process.wait()
