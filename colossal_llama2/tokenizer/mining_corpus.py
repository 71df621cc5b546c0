"""The text to mine: documents by category, some of them held out, personal data cut away."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import iterate_lines, parse_record, string_field
from colossal_llama2.tokenizer.documents import Documents, text_of_record

BadRecords = Literal["error", "skip"]
# Of weights over all characters: a character saves 4 tokens at most, and sums of that are kept in 64 bits.
_LARGEST_SUM: Final = 2.0**60

# Possessive and anchored: a run of a million letters or digits is gone through once.
_PERSONAL: Final = re.compile(
    r"(?P<url_with_user>\b[a-z][a-z0-9+.-]{1,15}://[^\s/@]++@[^\s<>\"')\]]*+"
    r"|\bhttps?://[^\s<>\"')\]]{0,200}?/(?:~|@|u/|user/|users/|people/|profile/|author/|space/)[^\s<>\"')\]/]++)"
    r"|(?P<e_mail>(?<![\w.%+-])[\w.%+-]++@[\w-]++(?:\.[\w-]++)++)"
    r"|(?P<telephone>(?<![\d.A-Za-z_])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,5}\)[ .-]?|\d{2,5}[ .-])"
    r"(?:\d{3,5}[ .-]?){1,2}\d{2,5}(?![\dA-Za-z_]|\.\d))"
    r"|(?P<digits>\d{7,}+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Document:
    """A text and the sub-dataset it is from."""

    text: str
    category: str


@dataclass(frozen=True)
class Corpus:
    """Documents to mine, documents to measure on, and what was left aside.

    Attributes:
        mined: documents to mine, in the order of files and lines.
        held_out: documents that are not mined.
        files: the files read.
        ignored: files of the folders that are no text.
        refused: complaints about lines that are no record, with `skip`.
    """

    mined: tuple[Document, ...]
    held_out: tuple[Document, ...]
    files: tuple[Path, ...]
    ignored: tuple[Path, ...]
    refused: tuple[str, ...]


def read_corpus(entries: Sequence[Path], holdout: float, bad_records: BadRecords = "error") -> Corpus:
    """Read the documents of folders and files: records of ``.jsonl``, lines of any other text.

    A record has source and target, or text, and perhaps a category; where none is named it is the file's name. A
    document is held out by the hash of its text, so equal ones stay together and none changes sides when others come
    or go.

    Args:
        entries: folders, searched in depth, and files.
        holdout: share of the documents to hold out, from 0 to less than 1.
        bad_records: whether a line that is not a record ends everything, or is listed.

    Raises:
        InputError: a path is missing, cannot be read or holds no text, or a line is not a record.
    """
    found = Documents(entries)
    refused: list[str] = []
    sides: tuple[list[Document], list[Document]] = ([], [])
    for path in found.files:
        for document in _documents(path, refused if bad_records == "skip" else None):
            sides[_fraction(document.text) < holdout].append(document)
    if not sides[0]:
        raise InputError("holds no document to mine", path=entries[0], remedy="give text, or a smaller --holdout")
    return Corpus(tuple(sides[0]), tuple(sides[1]), found.files, found.left_aside, tuple(refused))


def cut_personal_data(text: str, counts: Counter[str]) -> str:
    """Put a line break in place of every e-mail address, telephone number, URL with a user's name and long run of
    digits, and count them by kind."""

    def cut(match: re.Match[str]) -> str:
        counts[match.lastgroup or ""] += 1
        return "\n"

    return _PERSONAL.sub(cut, text)


def category_weights(documents: Sequence[Document], balance: float, factors: dict[str, float]) -> list[int]:
    """Return what a use counts in each document.

    Args:
        documents: the documents.
        balance: 0 counts every use alike, 1 lets every category have the same say whatever its size.
        factors: further factors by category.

    Raises:
        InputError: a factor for a category that is not there, or one that is not above 0, or factors so far apart that
            sums of weights would not fit into 64 bits.
    """
    sizes: Counter[str] = Counter()
    for document in documents:
        sizes[document.category] += len(document.text)
    for name, factor in factors.items():
        if name not in sizes or not 0 < factor < float("inf"):
            what = f"--category_weights gives {factor:g} to {name!r}"
            raise InputError(what, remedy=f"give a number above 0 to any of {', '.join(sorted(sizes))}")
    mean = sizes.total() / len(sizes)
    weights = {name: (mean / size) ** balance * factors.get(name, 1.0) for name, size in sizes.items()}
    if len(set(weights.values())) == 1:
        return [1] * len(documents)
    least = min(weights.values())
    # Whole numbers, so that sums do not depend on their order.
    shares = {name: 100 * weight / least if least else float("inf") for name, weight in weights.items()}
    if not sum(share * sizes[name] for name, share in shares.items()) < _LARGEST_SUM:
        what = f"--category_weights gives the categories weights too far apart: {max(shares.values()) / 100:g} to 1"
        raise InputError(what, remedy="give numbers that are closer to each other")
    whole = {name: round(share) for name, share in shares.items()}
    return [whole[document.category] for document in documents]


def parse_weights(text: str) -> dict[str, float]:
    """Read ``a=2,b=0.5``.

    Raises:
        InputError: a part is not a name and a number.
    """
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.rpartition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise InputError(f"--category_weights holds {part!r}", remedy="write category=number,category=number")
    return weights


def _documents(path: Path, refused: list[str] | None) -> Iterator[Document]:
    """Yield the documents of a file; lines that are no record go into `refused`, if there is such a list."""
    if path.suffix != ".jsonl":
        yield from (Document(text, path.stem) for text in Documents([path]) if text.strip())
        return
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None
    for line, content in iterate_lines(raw.split(b"\n")):
        try:
            record = parse_record(content, path, line)
            text = text_of_record(record, path, line)
            category = string_field(record, "category", path, line, default=path.stem) or path.stem
        except InputError as error:
            if refused is None:
                raise
            refused.append(str(error))
            continue
        if text:
            yield Document(text, category)


def _fraction(text: str) -> float:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
