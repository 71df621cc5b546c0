"""Files written at once or by a thread, with what goes wrong kept until all ranks can speak of it together.

A rank that raised in the middle of a save would leave the others waiting in a collective call. So an error of the disk
is remembered, the rest of this rank's files are left out, and whoever asks at the end is told.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from colossal_llama2.model.safetensors_stream import from_torch, write_tensors

_METADATA = {"format": "pt"}  # transformers refuses a file that does not say so


class Writing:
    """The files one rank contributes to a save.

    Args:
        in_background: keep what `add` gets until `start`, and write it in a thread; otherwise write it there and then.
    """

    def __init__(self, in_background: bool) -> None:
        self.error: OSError | None = None
        self._failure: BaseException | None = None
        self._waiting: deque[Callable[[], object]] = deque()
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True) if in_background else None
        self._started = False

    @property
    def in_background(self) -> bool:
        """Whether what is added is held in memory for a thread."""
        return self._thread is not None

    def add(self, write: Callable[[], object]) -> None:
        """Write, now or later; the order is kept."""
        if self._thread is None:
            self.attempt(write)
        else:
            self._waiting.append(write)

    def attempt(self, write: Callable[[], object]) -> None:
        """Write now, unless something went wrong already, and remember what the disk has to say."""
        if self.error is not None:
            return
        try:
            write()
        except OSError as error:
            self.error = error

    def start(self) -> None:
        """Let the thread begin: nothing is added after this."""
        self._started = True
        if self._thread is not None:
            self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether this rank has written everything, or given up."""
        return self._started and (self._thread is None or not self._thread.is_alive())

    def wait(self) -> None:
        """Wait until `finished`; what was no fault of the disk's is raised here."""
        if self._thread is not None and self._started:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while self._waiting:
                self.attempt(self._waiting.popleft())  # popped, so that a file's tensors go when it is written
        except BaseException as failure:  # raised by `wait`, in the thread that can be heard
            self._failure = failure
            self._waiting.clear()


def write_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file and force it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, [from_torch(name, tensor) for name, tensor in tensors.items()], _METADATA)
    flush(path)


def write_pickled(path: Path, content: Any) -> None:
    """Write with ``torch.save`` (tensors, numbers and containers alone) and force it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer covers up what the file said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
    flush(path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text and force it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    flush(path)


def flush(path: Path) -> None:
    """Force a file's bytes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
