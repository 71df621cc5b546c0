"""Start `train.py` on several ranks without paying for its imports each time.

Importing torch, transformers and ColossalAI takes longer than training a tiny model. A server imports them once and
forks a process a rank for every run: what runs in them is `train.py` itself, with the environment that torchrun would
give it. The one thing done otherwise: the peak that MFU refers to is measured on small matrices, in no time.

    with WarmRanks() as warm:
        finished = warm.run(2, ["--pretrained", ...])
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Finished:
    """A run that is over: the first exit code that is not 0 (negative for a signal), and what all ranks printed."""

    code: int
    output: str


class Started:
    """A run that is under way."""

    def __init__(self, server: subprocess.Popen[str], log: Path) -> None:
        self._server, self._log = server, log
        self.pids: list[int] = self._answer()["pids"]

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to every rank."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, how)

    def wait(self) -> Finished:
        """Wait for every rank; when one fails the others are killed, as torchrun does."""
        code = self._answer()["code"]
        return Finished(code, self._log.read_text(encoding="utf-8", errors="replace"))

    def _answer(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of warm ranks is gone (exit {self._server.poll()})")
        answer: dict[str, Any] = json.loads(line)
        return answer


class WarmRanks:
    """A server of ranks; one run at a time.

    Args:
        script: what the ranks run.
    """

    def __init__(self, script: Path = ROOT / "train.py") -> None:
        self._script = script
        self._logs = tempfile.TemporaryDirectory()
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"},
        )

    def __enter__(self) -> WarmRanks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._logs.cleanup()

    def start(self, ranks: int, arguments: Sequence[object]) -> Started:
        """Start a run on a number of ranks with the command-line arguments given."""
        self._count += 1
        log = Path(self._logs.name) / f"{self._count}.log"
        order = {"ranks": ranks, "argv": [str(self._script), *map(str, arguments)], "log": str(log)}
        assert self._server.stdin is not None
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return Started(self._server, log)

    def run(self, ranks: int, arguments: Sequence[object], seconds: float = 250) -> Finished:
        """Start a run and wait for it; kill it when it takes longer than `seconds`."""
        started = self.start(ranks, arguments)
        killer = threading.Timer(seconds, started.kill)
        killer.start()
        try:
            return started.wait()
        finally:
            killer.cancel()


def _serve() -> None:
    """Import once; then fork the ranks of each order that comes in a line of standard input."""
    sys.path.insert(0, str(ROOT))
    from colossal_llama2.engine import adam, compat  # noqa: F401

    compat.install()
    from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM  # noqa: F401

    from colossal_llama2.align import stages  # noqa: F401
    from colossal_llama2.train import flops

    _import_what_comes_late()
    flops._MEASURED_SIZE, flops._MEASURED_SECONDS = 64, 0.001

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing else may speak on the channel of the answers
    for line in sys.stdin:
        order = json.loads(line)
        port = _free_port()
        pids = [_fork(rank, order, port) for rank in range(order["ranks"])]
        print(json.dumps({"pids": pids}), file=answers)
        print(json.dumps({"code": _wait(pids)}), file=answers)


def _import_what_comes_late() -> None:
    for name in ("pandas", "torch.utils.tensorboard"):  # pyarrow imports the first with the first column it reads
        importlib.import_module(name)
    conversion_mapping = importlib.import_module("transformers.conversion_mapping")
    warm_up = getattr(conversion_mapping, "get_checkpoint_conversion_mapping", None)
    if warm_up is not None:  # builds a table of a thousand patterns, once
        warm_up("llama")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _fork(rank: int, order: dict[str, object], port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # no rank outlives the server
        log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": order["ranks"], "LOCAL_WORLD_SIZE": order["ranks"]}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in {**world, **address}.items()})
        sys.argv = list(order["argv"])  # type: ignore[call-overload]
        import runpy

        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pids: list[int]) -> int:
    """Wait for all; the first that fails takes the others down."""
    left, first = set(pids), 0
    while left:
        pid, status = os.wait()
        left.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not first:
            first = code
            for other in left:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
    return first


if __name__ == "__main__":
    _serve()
