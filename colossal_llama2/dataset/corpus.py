"""A prepared corpus, or several, as training sees them: buckets of rows, read where they lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.ledger import MANIFEST, VERSION
from colossal_llama2.dataset.parts import COLUMNS, RANKED_COLUMNS, PartReader, Row, part_name
from colossal_llama2.errors import InputError

CORPUS: Final = "pretrain"
"""Type of what `prepare_pretrain_dataset` writes; the other types are those of `prepare_dataset`."""
TEXT_TYPES: Final = (CORPUS, "sft")
"""Rows of documents of which some tokens are learned."""
_COLUMNS: Final = {CORPUS: COLUMNS, "sft": COLUMNS, "preference": RANKED_COLUMNS}
_READ_VERSIONS = (1, VERSION)  # rows and buckets are the same in both


@dataclass(frozen=True)
class _Manifest:
    max_length: int
    tokenizer: tuple[str, int | None, int | None]  # fingerprint, bos, eos
    buckets: list[tuple[int, int, str]]  # number, rows, sha256 of the Arrow file
    type: str
    chat_template: str | None


@dataclass(frozen=True)
class _Part:
    folder: Path
    bucket: int
    reader: PartReader
    sha256: str


class PreparedCorpus:
    """Rows of one or several prepared corpora; bucket i holds part i of every one of them.

    Attributes:
        bucket_sizes: [K] int64, rows per bucket.
        num_rows: rows in all.
        max_length: longest row any of them may hold, in tokens.
        tokenizer_fingerprint: hash of the tokenizer they were encoded with.
        chat_templates: what wrote the conversations in it, each template once.
        fingerprint: hash of all rows in their order.
    """

    def __init__(
        self, parts: Sequence[_Part], max_length: int, tokenizer_fingerprint: str, chat_templates: tuple[str, ...] = ()
    ) -> None:
        self._parts = sorted(parts, key=lambda part: part.bucket)  # stable: the order of the folders inside a bucket
        sizes = np.array([len(part.reader) for part in self._parts], dtype=np.int64)
        self._firsts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        numbers = np.array([part.bucket for part in self._parts])
        self.bucket_sizes: npt.NDArray[np.int64] = np.array(
            [int(sizes[numbers == bucket].sum()) for bucket in np.unique(numbers)], dtype=np.int64
        )
        self.num_rows = int(sizes.sum())
        self.max_length = max_length
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.chat_templates = chat_templates
        content = [[part.bucket, part.sha256] for part in self._parts]
        self.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @staticmethod
    def open(dirs: Sequence[Path], types: Collection[str] = TEXT_TYPES) -> PreparedCorpus:
        """Open prepared corpora or sets, or single ``part-XXXXX`` folders of them.

        Args:
            dirs: the folders.
            types: the types of sets that are wanted.

        Raises:
            InputError: a folder is missing, not one of ours or of another type, is named twice, or was encoded with
                another tokenizer than the one before it.
        """
        parts: list[_Part] = []
        manifests: list[_Manifest] = []
        for folder in dirs:
            home = folder if (folder / MANIFEST).is_file() else folder.absolute().parent
            manifest = _read_manifest(folder, home)
            _refuse_type(folder, manifest, types)
            found = _open_parts(home, manifest, None if home == folder else folder.absolute().name)
            if not found:
                raise InputError("is no part of the corpus it lies in", path=folder, remedy="name a part-XXXXX folder")
            if manifests and manifest.tokenizer != manifests[0].tokenizer:
                raise InputError(
                    "was encoded with another tokenizer than the corpus before it, or with other special tokens",
                    path=folder,
                    remedy="prepare both with the model's tokenizer",
                )
            parts += found
            manifests.append(manifest)
        if not parts:
            raise InputError("no prepared corpus is named", remedy="name one with --dataset")
        _refuse_twice(parts)
        longest = max(m.max_length for m in manifests)
        templates = dict.fromkeys(m.chat_template for m in manifests if m.chat_template is not None)
        return PreparedCorpus(parts, longest, manifests[0].tokenizer[0], tuple(templates))

    def row(self, index: int) -> Row:
        """Return a row by its global number, buckets counted through in order."""
        part, inside = self._find(index)
        return part.reader.row(inside)

    def describe_row(self, index: int) -> str:
        """Say where a row lies, for a person who wants to look at it."""
        part, inside = self._find(index)
        return f"row {inside} of {part.folder}"

    def _find(self, index: int) -> tuple[_Part, int]:
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return self._parts[number], index - int(self._firsts[number])


def _read_manifest(folder: Path, home: Path) -> _Manifest:
    if not folder.is_dir():
        raise InputError("does not exist", path=folder, remedy="name the output of prepare_pretrain_dataset")
    path = home / MANIFEST
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] not in _READ_VERSIONS:
            raise InputError(
                f"has layout version {content['version']}, and this is version {VERSION}",
                path=path,
                remedy="prepare the corpus again",
            )
        tokenizer = content["tokenizer"]
        return _Manifest(
            int(content["max_length"]),
            (str(tokenizer["fingerprint"]), tokenizer["bos_token_id"], tokenizer["eos_token_id"]),
            [(int(entry["bucket"]), int(entry["rows"]), str(entry["arrow_sha256"])) for entry in content["buckets"]],
            str(content.get("type", CORPUS)),
            content["chat_template"]["text"] if "chat_template" in content else None,
        )
    except FileNotFoundError:
        raise InputError(
            f"not a prepared corpus (no {MANIFEST})",
            path=folder,
            remedy="name the --data_arrow_output_dir of prepare_pretrain_dataset",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"not the ledger of a prepared corpus ({type(error).__name__}: {error})",
            path=path,
            remedy="prepare the corpus again",
        ) from None


def _refuse_type(folder: Path, manifest: _Manifest, types: Collection[str]) -> None:
    if manifest.type in types:
        return
    what = "a pretraining corpus" if manifest.type == CORPUS else f"a set of --type {manifest.type}"
    wanted = [name for name in types if name != CORPUS]
    raise InputError(
        f"is {what}, and this stage does not learn from that",
        path=folder,
        remedy=f"name a set that tools/prepare_dataset.py wrote with --type {' or '.join(wanted)}",
    )


def _open_parts(home: Path, manifest: _Manifest, only: str | None) -> list[_Part]:
    parts = []
    for bucket, rows, sha256 in manifest.buckets:
        folder = home / part_name(bucket)
        if only not in (None, folder.name):
            continue
        try:
            reader = PartReader(folder, _COLUMNS[manifest.type])
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be read ({error})", path=folder, remedy="prepare the corpus again") from None
        if len(reader) != rows:
            raise InputError(
                f"holds {len(reader)} rows and {MANIFEST} says {rows}",
                path=folder,
                remedy="prepare the corpus again",
            )
        parts.append(_Part(folder, bucket, reader, sha256))
    return parts


def _refuse_twice(parts: Sequence[_Part]) -> None:
    seen: set[Path] = set()
    for part in parts:
        real = part.folder.resolve()
        if real in seen:
            raise InputError("is named twice by --dataset", path=part.folder, remedy="name it once")
        seen.add(real)
