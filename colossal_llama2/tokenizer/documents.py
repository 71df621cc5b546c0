"""The documents of a text sample, read as often as they are asked for and never all in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import read_jsonl, string_field

_SUFFIXES = (".jsonl", ".txt")
# A line with the line endings behind it: which of them are one token is part of what a document shows.
_LINE = re.compile(r"[^\r\n]*[\r\n]+|[^\r\n]+")


class Documents:
    """Iterates over the documents of files: the records of a ``.jsonl``, the lines of any other text.

    Attributes:
        files: the files that are read, a folder's sorted by path.
        left_aside: files of folders that are neither ``.jsonl`` nor ``.txt``.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Find the files.

        Raises:
            InputError: a path does not exist, or a folder holds no ``.jsonl`` or ``.txt``.
        """
        files: list[Path] = []
        self.left_aside: tuple[Path, ...] = ()
        for path in paths:
            if path.is_dir():
                inside = sorted(file for file in path.rglob("*") if file.is_file())
                texts = [file for file in inside if file.suffix in _SUFFIXES]
                if not texts:
                    raise InputError("holds no .jsonl or .txt", path=path, remedy="give a folder with text in it")
                self.left_aside += tuple(file for file in inside if file.suffix not in _SUFFIXES)
                files += texts
            elif path.exists():
                files.append(path)
            else:
                raise InputError("no such file or folder", path=path, remedy="give text, or a folder of text")
        self.files = tuple(dict.fromkeys(files))

    def __iter__(self) -> Iterator[str]:
        """Yield document by document; empty ones are none.

        Raises:
            InputError: a file cannot be read, is not UTF-8, or a record has neither source and target nor text.
        """
        for path in self.files:
            if path.suffix == ".jsonl":
                texts: Iterator[str] = (text_of_record(record, path, line) for line, record in read_jsonl(path))
            else:
                texts = (match.group() for match in _LINE.finditer(read_text(path)))
            yield from (text for text in texts if text)


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        InputError: the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (at byte {error.start})", path=path, remedy="convert it to UTF-8") from None


def text_of_record(record: dict[str, object], path: Path, line: int) -> str:
    """Return the text of a record: source and target one behind the other, or text.

    Raises:
        InputError: the record has neither, or one of them is not a string.
    """
    if "target" in record or "source" in record:
        return string_field(record, "source", path, line, default="") + string_field(record, "target", path, line)
    return string_field(record, "text", path, line)
