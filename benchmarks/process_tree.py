"""Runs a command and measures it and everything it starts: seconds, processor seconds, memory."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SECONDS_BETWEEN_SAMPLES = 0.05


@dataclass(frozen=True)
class Measured:
    """What a command cost.

    Attributes:
        seconds: from its start to its end.
        processor_seconds: user and system, of it and of every process it waited for.
        peak_bytes: the most that was resident at one time, summed over all its processes. Pages that several of them
            map count once for each, so this is too much rather than too little; what falls between two samples is
            missed.
        peak_processes: the most processes that were there at one time.
        output: what it said on standard output.
    """

    seconds: float
    processor_seconds: float
    peak_bytes: int
    peak_processes: int
    output: str


def run_measured(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Measured:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as complaints:
        begun = time.perf_counter()
        # Measured with wait4, which alone tells the processor seconds of one child and of what that child waited for.
        process = subprocess.Popen(command, stdout=out, stderr=complaints, env={**os.environ, **(environment or {})})
        with _Sampler(process.pid) as sampler:
            _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        complaints.seek(0)
        said = out.read().decode()
        if process.returncode:
            end = (said + complaints.read().decode())[-3000:]
            raise RuntimeError(f"{Path(command[1]).name} ended with {process.returncode}: {end}")
    return Measured(seconds, used.ru_utime + used.ru_stime, sampler.peak_bytes, sampler.peak_processes, said)


class _Sampler(threading.Thread):
    """Looks at a process and everything below it again and again."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._done = threading.Event()
        self.peak_bytes = 0
        self.peak_processes = 0

    def __enter__(self) -> _Sampler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        """Sample until told to stop."""
        while not self._done.wait(SECONDS_BETWEEN_SAMPLES):
            sizes = list(_resident(self._process))
            self.peak_bytes = max(self.peak_bytes, sum(sizes))
            self.peak_processes = max(self.peak_processes, len(sizes))


def _resident(process: int) -> list[int]:
    sizes = []
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process)
        for one in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                sizes.append(one.memory_info().rss)
    return sizes
