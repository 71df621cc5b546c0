"""A folder that all ranks fill and that takes its name when each has written its part; or that never was."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from colossal_llama2.engine import ranks
from colossal_llama2.engine.running_state import RunningState, write_running_state
from colossal_llama2.engine.writing import Writing, flush
from colossal_llama2.outputs import flush_tree, replace_directory


class SaveError(Exception):
    """A save came to nothing, on every rank alike; the message says what the disk said. What was there is untouched."""


class PendingSave:
    """A save whose files are being written; nothing is visible under its name yet.

    Args:
        target: the name it will take.
        in_background: write in a thread while training goes on.
    """

    def __init__(self, target: Path, in_background: bool) -> None:
        self.target = target
        self.work = target.with_name(f".{target.name}.partial")
        self.writing = Writing(in_background)
        self.expected: list[Path] = []
        if ranks.is_first():
            shutil.rmtree(self.work, ignore_errors=True)
            self.writing.attempt(lambda: self.work.mkdir(parents=True))
        ranks.barrier()

    @property
    def finished(self) -> bool:
        """Whether this rank has nothing left to write."""
        return self.writing.finished

    def complete(self, state: RunningState | None = None) -> None:
        """Wait for the files of every rank, write the running state if there is one, and give the folder its name.

        Every rank takes part.

        Raises:
            SaveError: on every rank, when one of them could not write; what was begun is removed.
        """
        self.writing.wait()
        self._agree()
        if ranks.is_first():
            self.writing.attempt(partial(self._name, state))
        self._agree()

    def _name(self, state: RunningState | None) -> None:
        missing = [path for path in self.expected if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} files of other ranks are not there, {missing[0].name} first; "
                "all machines must see the same folder"
            )
        if state is not None:
            write_running_state(state, self.work)
        flush_tree(self.work)
        for folder in [path for path in self.work.rglob("*") if path.is_dir()]:
            flush(folder)
        replace_directory(self.work, self.target)

    def _agree(self) -> None:
        error = self.writing.error
        if not ranks.sum_over_ranks(float(error is not None))[0]:
            return
        said = [text for text in ranks.texts_of_ranks("" if error is None else _what(error)) if text]
        if ranks.is_first():
            shutil.rmtree(self.work, ignore_errors=True)
        ranks.barrier()
        raise SaveError(said[0])


def _what(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
