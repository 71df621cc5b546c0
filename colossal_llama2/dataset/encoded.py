"""An encoded shard on disk: its tokens one after the other, a table of its documents, one of its segments."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

TOKENS_FILE: Final = "tokens.bin"
DOCUMENTS_FILE: Final = "documents.npy"
HASHES_FILE: Final = "hashes.npy"
SEGMENTS_FILE: Final = "segments.npy"
SHARD_FILE: Final = "shard.json"
# Per document: tokens in all (bos and eos among them), how many at its beginning are not learned (bos, source),
# category (index into the shard's list), characters and UTF-8 bytes of its text, and whether a token lies across source
# and target.
DOCUMENT: Final = np.dtype(
    [
        ("tokens", "<i4"),
        ("unlearned", "<i4"),
        ("category", "<i4"),
        ("characters", "<u4"),
        ("bytes", "<u4"),
        ("straddles", "?"),
    ]
)
# Per segment, that is per part of a file: what it gave, and what was refused of it.
SEGMENT: Final = np.dtype([("documents", "<i8"), ("characters", "<i8"), ("bytes", "<i8"), ("tokens", "<i8")])


@dataclass(frozen=True)
class RefusedLine:
    """A line that is no record: the segment of the shard it stands in, the lines of that segment before it, and why."""

    segment: int
    lines_before: int
    reason: str


@dataclass(frozen=True)
class EncodedShard:
    """Where a shard's tokens lie, and what must be known of it at all times.

    Attributes:
        folder: holds the tables and the tokens (int32, flat).
        num_documents: documents in it.
        num_tokens: tokens in it.
        categories: names for the documents' category numbers.
        refused: lines passed over.
        content_hash: sha256 of what was read.
    """

    folder: Path
    num_documents: int
    num_tokens: int
    categories: tuple[str, ...]
    refused: tuple[RefusedLine, ...]
    content_hash: str

    def documents(self) -> npt.NDArray[Any]:
        """Read the documents' table (`DOCUMENT`)."""
        return np.load(self.folder / DOCUMENTS_FILE)

    def segments(self) -> npt.NDArray[Any]:
        """Read the segments' table (`SEGMENT`)."""
        return np.load(self.folder / SEGMENTS_FILE)

    def hashes(self) -> npt.NDArray[Any]:
        """Read what duplicates are told by, a row a document."""
        return np.load(self.folder / HASHES_FILE)


class ShardHashes(Sequence[npt.NDArray[Any]]):
    """What duplicates are told by, shard by shard, read each time it is asked for."""

    def __init__(self, shards: Sequence[EncodedShard]) -> None:
        self._shards = shards

    def __len__(self) -> int:
        """Number of shards."""
        return len(self._shards)

    def __getitem__(self, index: Any) -> Any:
        """Read one shard's."""
        return self._shards[index].hashes()


class ShardWriter:
    """Writes a shard document by document, holding no more than the tables.

    Args:
        folder: an empty folder.
        content_hash: sha256 of what is being read.
    """

    def __init__(self, folder: Path, content_hash: str) -> None:
        self._folder = folder
        self._content_hash = content_hash
        self._tokens = (folder / TOKENS_FILE).open("wb")
        self._num_tokens = self._crc = 0
        self._tables: list[npt.NDArray[Any]] = []
        self._hashes: list[npt.NDArray[Any]] = []
        self._numbers: dict[str, int] = {}
        self._segment_ends: list[int] = []

    def __enter__(self) -> ShardWriter:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file of tokens."""
        self._tokens.close()

    def number_of(self, category: str) -> int:
        """Return the number of a category; the first time it is met it gets the next one."""
        return self._numbers.setdefault(category, len(self._numbers))

    def add_tokens(self, tokens: npt.NDArray[np.int32]) -> None:
        """Append tokens, [T] int32."""
        content = np.ascontiguousarray(tokens, dtype="<i4").data
        self._crc = zlib.crc32(content, self._crc)
        self._tokens.write(content)
        self._num_tokens += len(tokens)

    def add_documents(self, table: npt.NDArray[Any], hashes: npt.NDArray[Any] | None) -> None:
        """Append documents (`DOCUMENT`) whose tokens were added, and what duplicates are told by."""
        self._tables.append(table)
        if hashes is not None:
            self._hashes.append(hashes)

    def end_segment(self, num_documents: int) -> None:
        """Say how many of the shard's documents belong to this segment and those before it, added yet or not."""
        self._segment_ends.append(num_documents)

    def finish(self, refused: list[RefusedLine]) -> EncodedShard:
        """Write the tables, and last the account by which `read_shard_folder` tells that everything is there."""
        self._tokens.flush()
        documents = np.concatenate(self._tables) if self._tables else np.zeros(0, dtype=DOCUMENT)
        segments = _sums_of_segments(documents, np.array(self._segment_ends, dtype=np.int64))
        np.save(self._folder / DOCUMENTS_FILE, documents)
        np.save(self._folder / SEGMENTS_FILE, segments)
        sums = [self._crc, zlib.crc32(documents.tobytes()), zlib.crc32(segments.tobytes())]
        if self._hashes:
            hashes = np.concatenate(self._hashes)
            np.save(self._folder / HASHES_FILE, hashes)
            sums.append(zlib.crc32(hashes.tobytes()))
        content = {
            "content_hash": self._content_hash,
            "num_documents": len(documents),
            "num_tokens": self._num_tokens,
            "categories": list(self._numbers),
            "refused": [asdict(line) for line in refused],
        }
        account = {**content, "crc32": [*sums, _crc_of(content)]}
        (self._folder / SHARD_FILE).write_text(json.dumps(account), encoding="utf-8")
        return _from_content(self._folder, content)


def _sums_of_segments(documents: npt.NDArray[Any], ends: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    assert not len(ends) or ends[-1] == len(documents), "every document belongs to a segment"
    segments = np.zeros(len(ends), dtype=SEGMENT)
    segments["documents"] = np.diff(ends, prepend=0)
    for name in ("characters", "bytes", "tokens"):
        sums = np.concatenate([[0], np.cumsum(documents[name], dtype=np.int64)])
        segments[name] = np.diff(sums[ends], prepend=0)
    return segments


def read_shard_folder(folder: Path, content_hash: str) -> EncodedShard | None:
    """Find an encoded shard; None where there is none, it is of other bytes, or anything in it is damaged."""
    try:
        content = json.loads((folder / SHARD_FILE).read_text(encoding="utf-8"))
        sums = content.pop("crc32")
        found = _from_content(folder, content)
        tables = [found.documents(), found.segments()]
        if (folder / HASHES_FILE).exists():
            tables.append(found.hashes())
        actual = [_crc_of_file(folder / TOKENS_FILE), *(zlib.crc32(table.tobytes()) for table in tables)]
        whole = sums == [*actual, _crc_of(content)] and found.content_hash == content_hash
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None
    return found if whole else None


def _from_content(folder: Path, content: dict[str, Any]) -> EncodedShard:
    refused = tuple(RefusedLine(**line) for line in content["refused"])
    numbers = (int(content["num_documents"]), int(content["num_tokens"]))
    return EncodedShard(folder, *numbers, tuple(content["categories"]), refused, str(content["content_hash"]))


def _crc_of(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content).encode())


def _crc_of_file(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc
