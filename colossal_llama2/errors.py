"""The one exception that stands for a mistake of the person at the keyboard."""

from __future__ import annotations

from pathlib import Path


class InputError(Exception):
    """A user's mistake: a flag, a path, a file, a record or an impossible combination.

    Commands print it as one ``error:`` line and exit with 2; nothing else in the project is reported that way.

    Args:
        what: what is wrong, as a sentence without a full stop.
        path: the file or folder it is wrong in, if any.
        line: the line of that file, counted from 1.
        remedy: what to do about it, as a sentence without a full stop.
    """

    def __init__(
        self,
        what: str,
        *,
        path: Path | str | None = None,
        line: int | None = None,
        remedy: str | None = None,
    ) -> None:
        where = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        # One line whatever the text quotes: a line break inside a path or record must not split the message.
        message = " ".join(f"{where}{what}{'; ' + remedy if remedy else ''}".split())
        super().__init__(message)
        self.what, self.path, self.line, self.remedy = what, path, line, remedy
