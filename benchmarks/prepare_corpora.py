"""The corpora that `benchmarks/prepare.py` measures on, made of the texts of one: cut, repeated, joined, scattered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from colossal_llama2.errors import InputError

_FILES_A_FOLDER = 1000


@dataclass(frozen=True)
class Corpus:
    """A folder of jsonl.

    Attributes:
        folder: where it lies.
        num_bytes: of its files together.
        num_files: how many.
    """

    folder: Path
    num_bytes: int
    num_files: int

    @staticmethod
    def of(folder: Path) -> Corpus:
        """Count a folder's files.

        Raises:
            InputError: it holds none.
        """
        sizes = [path.stat().st_size for path in folder.rglob("*.jsonl")]
        if not sizes:
            raise InputError("holds no jsonl", path=folder, remedy="name the folder of a corpus with --corpus_dir")
        return Corpus(folder, sum(sizes), len(sizes))

    def files(self) -> list[Path]:
        """Its files, by name."""
        return sorted(self.folder.rglob("*.jsonl"))


def _records(corpus: Corpus) -> Iterator[dict[str, Any]]:
    for path in corpus.files():
        with path.open("rb") as file:
            yield from map(orjson.loads, filter(bytes.strip, file))


def sample(corpus: Corpus, target: Path, megabytes: float) -> Corpus:
    """Take records evenly from every file until they are about so many megabytes; the whole corpus if it is smaller."""
    share = megabytes * 1e6 / corpus.num_bytes
    if share >= 1:
        return corpus
    for path in corpus.files():
        place = target / path.relative_to(corpus.folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        taken = seen = 0
        with path.open("rb") as file, place.open("wb") as out:
            for line in file:
                seen += len(line)
                if taken + len(line) <= share * seen:
                    taken += len(line)
                    out.write(line)
        if not taken:  # one record is more than the file's share
            place.unlink()
    return Corpus.of(target)


def small_records(corpus: Corpus, target: Path, num_bytes: int = 200) -> Corpus:
    """Cut every text into records of at most so many bytes of UTF-8."""
    target.mkdir(parents=True)
    with (target / "small.jsonl").open("wb") as out:
        for record in _records(corpus):
            category = record.get("category", "unknown")
            for text in _cut(_text(record), num_bytes):
                out.write(orjson.dumps({"source": "", "target": text, "category": category}) + b"\n")
    return Corpus.of(target)


def _cut(text: str, num_bytes: int) -> Iterator[str]:
    written, begin = text.encode(), 0
    while begin < len(written):
        part = written[begin : begin + num_bytes].decode("utf-8", "ignore")
        yield part
        begin += len(part.encode())


def repeated(corpus: Corpus, target: Path, gigabytes: float) -> Corpus:
    """Repeat a corpus, a number before each text, so that no repetition has the bytes of another."""
    target.mkdir(parents=True)
    written = repetition = 0
    while written < gigabytes * 1e9:
        with (target / f"repetition-{repetition:04d}.jsonl").open("wb") as out:
            for number, record in enumerate(_records(corpus)):
                # Where there is a source the number stands before it: it is the text's beginning.
                first = "source" if record.get("source") else "target" if "target" in record else "text"
                line = orjson.dumps({**record, first: f"{repetition}.{number} {record[first]}"}) + b"\n"
                written += out.write(line)
                if written >= gigabytes * 1e9:
                    break
        repetition += 1
    return Corpus.of(target)


def single_document(corpus: Corpus, target: Path, gigabytes: float) -> Corpus:
    """Join all texts to one document on one line, again and again, until the line is long enough."""
    target.mkdir(parents=True)
    written = repetition = 0
    with (target / "document.jsonl").open("wb") as out:
        out.write(b'{"target": "')
        while written < gigabytes * 1e9:
            for number, record in enumerate(_records(corpus)):
                text = f"{repetition}.{number} {_text(record)}\n"
                written += out.write(json.dumps(text, ensure_ascii=False)[1:-1].encode())
                if written >= gigabytes * 1e9:
                    break
            repetition += 1
        out.write(b'"}\n')
    return Corpus.of(target)


def small_files(corpus: Corpus, target: Path, count: int) -> Corpus:
    """Write so many files of one record of about two hundred bytes each, a thousand a folder."""
    made = 0
    while made < count:
        for record in _records(corpus):
            for text in _cut(_text(record), 200):
                folder = target / f"{made // _FILES_A_FOLDER:06d}"
                if made % _FILES_A_FOLDER == 0:
                    folder.mkdir(parents=True)
                line = orjson.dumps({"target": f"{made} {text}", "category": record.get("category", "unknown")})
                (folder / f"{made:09d}.jsonl").write_bytes(line + b"\n")
                made += 1
                if made == count:
                    return Corpus.of(target)
    return Corpus.of(target)


def _text(record: dict[str, Any]) -> str:
    return str(record.get("source", "")) + str(record["target"] if "target" in record else record["text"])
