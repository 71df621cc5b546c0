"""Runs on every host of a launch: starts the job, passes on what it prints, and ends it when the launcher is gone.

A launcher that leaves closes standard input; one that is cut off goes silent. In both cases nothing of the job stays
behind. One thread and no blocking call: a connection that takes no more output must not keep it from noticing.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from colossal_llama2.engine.nodes import frames, lifeline
from colossal_llama2.engine.nodes.remote import ROOT

NODE_DIR = "COLOSSAL_LLAMA2_NODE_DIR"  # environment variable: a folder of the job's own, deleted after it
FAILURE_FILE = "failure.json"
_CHUNK = 65536
_CHUNKS_AT_ONCE = 16
_IDLE_SECONDS, _BUSY_SECONDS = 0.1, 0.005
_MOST_UNSENT = 4 << 20  # bytes; beyond it the job's pipes fill up and it waits, as it would on any slow terminal
_GRACE_AFTER_LOSS = 5.0  # seconds


class Watchdog:
    """One job on one host, from the line that describes it to its end."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._commands = frames.Lines()
        self._unsent = bytearray()
        self._job: _Job | None = None
        self._heard = self._spoken = time.monotonic()
        self._silence = 60.0
        self._kill_at: float | None = None
        self._connected = True
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        self._selector.register(0, selectors.EVENT_READ)

    def run(self) -> int:
        """Serve until the job is over; return its exit code, or 1 when there was none."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._say({"ready": _free_port(), "host": socket.gethostname(), "pid": os.getpid()})
        while self._connected or self._job is not None:
            for key, _ in self._selector.select(timeout=_BUSY_SECONDS if self._unsent else _IDLE_SECONDS):
                if key.fd == 0:
                    self._listen()
            self._check_connection()
            if self._job is not None and self._job.step(self._say, paused=len(self._unsent) > _MOST_UNSENT):
                return self._finish(self._job)
            if self._kill_at is not None and time.monotonic() > self._kill_at:
                lifeline.kill_descendants()
                if self._job is None:
                    break
            if time.monotonic() - self._spoken > frames.BEAT_SECONDS:
                self._say(frames.BEAT)
            self._send()
        return 1

    def _listen(self) -> None:
        try:
            data = os.read(0, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._lose_launcher()
            return
        self._heard = time.monotonic()
        for line in self._commands.feed(data):
            order = frames.decode(line) or {}
            if "argv" in order:
                self._silence = float(order["silence"])
                self._job = _Job(order)
            elif "stop" in order:
                self._stop(int(order["stop"]), float(order["grace"]))

    def _check_connection(self) -> None:
        if self._connected and time.monotonic() - self._heard > self._silence:
            with suppress(OSError):  # whoever read this may be gone
                print(f"no sign of the launcher for {self._silence:.0f} s", file=sys.stderr, flush=True)
            self._lose_launcher()

    def _lose_launcher(self) -> None:
        if self._connected:
            self._connected = False
            self._selector.unregister(0)
            self._stop(signal.SIGTERM, _GRACE_AFTER_LOSS)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._stop(signal.SIGTERM, _GRACE_AFTER_LOSS)

    def _stop(self, number: int, grace: float) -> None:
        """Ask the ranks to end, and see to it after `grace` seconds."""
        deadline = time.monotonic() + grace
        self._kill_at = deadline if self._kill_at is None else min(deadline, self._kill_at)
        if self._job is not None:
            self._job.signal_ranks(number)

    def _finish(self, job: _Job) -> int:
        left = lifeline.kill_descendants()
        lifeline.reap_orphans()
        job.drain(self._say)
        self._say({"done": job.code, "failure": job.failure(), "left": left})
        deadline = time.monotonic() + _GRACE_AFTER_LOSS
        while self._unsent and self._connected and time.monotonic() < deadline:
            self._send()
            time.sleep(0.01)
        job.clean_up()
        return job.code

    def _say(self, frame: dict[str, Any]) -> None:
        self._unsent += frames.encode(frame)
        self._spoken = time.monotonic()

    def _send(self) -> None:
        while self._unsent:
            try:
                del self._unsent[: os.write(1, self._unsent[:_CHUNK])]
            except BlockingIOError:
                return
            except OSError:  # nobody reads any more; standard input will say so too
                self._unsent.clear()
                self._lose_launcher()


class _Job:
    """The process started, and its output."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.code = 1
        self._dir = Path(tempfile.mkdtemp(prefix="colossal-llama2-"))
        self._child: subprocess.Popen[bytes] | None = None
        self._open: dict[int, tuple[frames.Lines, frames.RankLines, bool]] = {}
        self._problem = ""
        try:
            self._child = subprocess.Popen(
                order["argv"],
                cwd=order["directory"],
                env={**_own_package_first({**os.environ, **order["env"]}), NODE_DIR: str(self._dir)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=lifeline.die_with_parent,  # noqa: PLW1509  this process has no threads
            )
        except (OSError, ValueError) as error:
            self._problem = f"{order['argv'][0]} cannot be started in {order['directory']}: {error}"
            return
        for stream, is_error in ((self._child.stdout, False), (self._child.stderr, True)):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._open[stream.fileno()] = (frames.Lines(), frames.RankLines(), is_error)

    def step(self, say: Any, paused: bool) -> bool:
        """Pass on what was printed, unless `paused`; tell whether the process is over."""
        if self._child is None:
            return True
        code = self._child.poll()
        if code is None and not paused:
            self._read(say)
        if code is not None:
            self.code = 128 - code if code < 0 else code
        return code is not None

    def drain(self, say: Any) -> None:
        """Pass on everything that is left, whole line or not."""
        self._read(say)
        for lines, ranks, is_error in self._open.values():
            rest = lines.rest()
            said = [*(ranks.feed(rest) if rest else ()), *ranks.rest()]
            for rank, text in said:
                say({"text": text, "rank": rank, "error": is_error})

    def signal_ranks(self, number: int) -> None:
        """Signal the ranks themselves: torchrun would pass a signal on, and then kill what is not done in 30 s."""
        if self._child is None:
            return
        with suppress(psutil.Error):
            torchrun = psutil.Process(self._child.pid)
            for process in torchrun.children() or [torchrun]:
                with suppress(psutil.Error):
                    process.send_signal(number)

    def failure(self) -> dict[str, Any] | None:
        """Return what is known of the rank that failed first."""
        if self._problem:
            return {"rank": None, "exit": 1, "message": self._problem, "traceback": ""}
        with suppress(OSError, ValueError):
            known: dict[str, Any] = json.loads((self._dir / FAILURE_FILE).read_text(encoding="utf-8"))
            return known
        return None

    def clean_up(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self._dir, ignore_errors=True)

    def _read(self, say: Any) -> None:
        for descriptor, (lines, ranks, is_error) in self._open.items():
            with suppress(BlockingIOError):
                for _ in range(_CHUNKS_AT_ONCE):  # a job that never stops printing must not keep it from listening
                    data = os.read(descriptor, _CHUNK)
                    for line in lines.feed(data):
                        for rank, text in ranks.feed(line):
                            say({"text": text, "rank": rank, "error": is_error})
                    if not data:
                        break


def _own_package_first(environment: dict[str, str]) -> dict[str, str]:
    """Let the job import the same copy of this package, from whatever folder it starts in and whatever is forwarded."""
    path = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    return {**environment, "PYTHONPATH": path}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    """Serve one launch."""
    lifeline.adopt_orphans()
    try:
        return Watchdog().run()
    finally:
        lifeline.kill_descendants()


if __name__ == "__main__":
    sys.exit(main())
