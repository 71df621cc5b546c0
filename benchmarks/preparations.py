"""Preparations of one corpus in folders of their own, what they wrote, and a Ray cluster to do them on."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST, SECOND = "arrow", "jsonl"  # the order in which the outputs take their names
_HAN = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用"
_WORDS = "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they"
_FILES = 12


@dataclass(frozen=True)
class Preparation:
    """A command line whose cache and outputs lie in one folder."""

    corpus: Path
    tokenizer_dir: Path
    folder: Path

    def command(self, *more: str) -> list[str]:
        """Return the command line."""
        return [
            sys.executable, str(ROOT / "tools" / "prepare_pretrain_dataset.py"),
            "--data_input_dirs", str(self.corpus),
            "--tokenizer_dir", str(self.tokenizer_dir),
            "--data_cache_dir", str(self.folder / "cache"),
            "--data_jsonl_output_dir", str(self.folder / "jsonl"),
            "--data_arrow_output_dir", str(self.folder / "arrow"),
            "--holdout", "1%",
            *more,
        ]  # fmt: skip

    def outputs_there(self) -> list[bool]:
        """Say which of the outputs have their names, the first to get it first."""
        return [(self.folder / name).exists() for name in (FIRST, SECOND)]

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """Start it as the leader of a group of processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "said.txt").open("wb") as said:
            return subprocess.Popen(self.command(*more), stdout=said, stderr=said, start_new_session=True)

    def said(self) -> str:
        """Return the end of what the last run said."""
        return (self.folder / "said.txt").read_text(encoding="utf-8", errors="replace")[-2000:].strip()


def run_undisturbed(preparation: Preparation, *more: str) -> float:
    """Run to the end; return the seconds.

    Raises:
        RuntimeError: it failed.
    """
    begun = time.perf_counter()
    code = preparation.start(*more).wait()
    if code:
        raise RuntimeError(f"ended with {code}: {preparation.said()}")
    return time.perf_counter() - begun


@contextmanager
def ray_cluster(how: str, folder: Path) -> Iterator[str | None]:
    """Give the address of a cluster of this machine, stopped at the end with all its processes."""
    # Newer versions of Ray put a token into the user's home and ask for it; a cluster of an hour needs none.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    if how != "head":
        yield None if how == "none" else "local"
        return
    port, folder = _free_port(), folder.resolve()
    program = Path(sys.executable).with_name("ray")
    command = [
        str(program), "start", "--head", "--block", "--port", str(port), "--num-cpus", "2",
        "--include-dashboard=false", "--disable-usage-stats", "--temp-dir", str(folder),
    ]  # fmt: skip
    # Ray's workers find the package where its head does.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    head = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not _answers(port) and head.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        with suppress(subprocess.TimeoutExpired):
            head.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def output_hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for name in (FIRST, SECOND)
        for path in sorted((folder / name).rglob("*"))
        if path.is_file() and path.name != "settings.yaml"
    }


def differences(preparation: Preparation, expected: dict[str, str]) -> list[str]:
    found = output_hashes(preparation.folder)
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return [f"{len(names)} files differ: {', '.join(names[:5])}"] if names else []


def make_corpus(folder: Path, megabytes: float) -> Path:
    """Write files of Chinese and English text of several categories; the same on every call."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    for number in range(_FILES):
        left = megabytes * 1e6 / _FILES
        with (folder / f"text-{number:02d}.jsonl").open("wb") as out:
            while left > 0:
                if number % 2:
                    text = " ".join(draw.choices(_WORDS.split(), k=draw.choice([20, 300, 2000])))
                else:
                    text = "".join(draw.choices(_HAN + "，。\n", k=draw.choice([30, 500, 6000])))
                record = {"source": "", "target": text, "category": f"category {number % 5}"}
                left -= out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    return folder
