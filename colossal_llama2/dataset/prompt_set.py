"""Prepared sets of prompts (`prepare_dataset --type prompt`) as training sees them: prompts by number, in an order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from colossal_llama2.dataset.conversation_rows import PROMPT_COLUMNS
from colossal_llama2.dataset.ledger import MANIFEST
from colossal_llama2.dataset.order import epoch_order
from colossal_llama2.dataset.parts import ARROW_FILE, part_name
from colossal_llama2.errors import InputError


@dataclass(frozen=True)
class PromptRow:
    """A prompt of a set.

    Attributes:
        ids: [P] int32, ending with what asks for the answer.
        text: the prompt as a text, whole.
        record: the record it was read from.
    """

    ids: npt.NDArray[np.int32]
    text: str
    record: dict[str, Any]


@dataclass(frozen=True)
class _Part:
    bucket: int
    table: Any
    sha256: str


class PromptSet:
    """Prompts of one or several prepared sets; bucket i holds part i of every one of them.

    Attributes:
        bucket_sizes: [K] int64, prompts per bucket.
        num_prompts: prompts in all.
        longest: tokens of the longest.
        tokenizer_fingerprint: hash of the tokenizer they were encoded with.
        template: text of the chat template they were rendered with.
        fingerprint: hash of all prompts in their order.
    """

    def __init__(self, parts: Sequence[_Part], tokenizer_fingerprint: str, template: str) -> None:
        self._parts = sorted(parts, key=lambda part: part.bucket)  # stable: the order of the folders inside a bucket
        sizes = np.array([part.table.num_rows for part in self._parts], dtype=np.int64)
        self._firsts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        numbers = np.array([part.bucket for part in self._parts])
        self.bucket_sizes: npt.NDArray[np.int64] = np.array(
            [int(sizes[numbers == bucket].sum()) for bucket in np.unique(numbers)], dtype=np.int64
        )
        self.num_prompts = int(sizes.sum())
        self.longest = max(_longest(part.table) for part in self._parts)
        self.tokenizer_fingerprint, self.template = tokenizer_fingerprint, template
        content = [[part.bucket, part.sha256] for part in self._parts]
        self.fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        self._order = cache(lambda seed, epoch: epoch_order(self.bucket_sizes, seed, epoch))

    @staticmethod
    def open(dirs: Sequence[Path]) -> PromptSet:
        """Open prepared sets.

        Raises:
            InputError: one is missing or no set of prompts, or differs from the first in tokenizer or chat template.
        """
        parts: list[_Part] = []
        first: tuple[str, str] | None = None
        for folder in dirs:
            manifest = _read_manifest(folder)
            made_with = manifest["tokenizer"]["fingerprint"], manifest["chat_template"]["text"]
            if first not in (None, made_with):
                raise InputError(
                    "was made with another tokenizer or chat template than the set before it",
                    path=folder,
                    remedy="prepare both alike",
                )
            first = made_with
            parts += _open_parts(folder, manifest)
        if first is None:
            raise InputError("no set of prompts is named", remedy="name one with --dataset")
        if not any(part.table.num_rows for part in parts):
            raise InputError("holds no prompt", path=dirs[0], remedy="prepare it again")
        return PromptSet(parts, *first)

    def row(self, index: int) -> PromptRow:
        """Return a prompt by its number, buckets counted through in order."""
        place = int(np.searchsorted(self._firsts, index, side="right")) - 1
        row = self._parts[place].table.slice(index - int(self._firsts[place]), 1)
        ids = row.column("prompt_ids")[0].values.to_numpy(zero_copy_only=False).astype(np.int32)
        return PromptRow(ids, row.column("text")[0].as_py(), json.loads(row.column("record")[0].as_py()))

    def take(self, seed: int, epoch: int, consumed: int, count: int) -> list[tuple[int, int]]:
        """Return the next prompts from a position on; when an epoch has too few left, the next one begins.

        Args:
            seed: decides the order inside buckets.
            epoch: epoch of the position, from 0.
            consumed: prompts of it that are done.
            count: how many.

        Returns:
            [count] pairs of epoch and number of the prompt.
        """
        taken: list[tuple[int, int]] = []
        while len(taken) < count:
            fresh = self._order(seed, epoch)[consumed : consumed + count - len(taken)]
            taken += [(epoch, int(index)) for index in fresh]
            epoch, consumed = epoch + 1, 0
        return taken


def _longest(table: Any) -> int:
    """Return the tokens of the longest prompt."""
    return max(
        (int(chunk.value_lengths().to_numpy().max(initial=0)) for chunk in table.column("prompt_ids").chunks), default=0
    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = manifest.get("type", "corpus")
        _ = manifest["tokenizer"]["fingerprint"], manifest["buckets"]
    except FileNotFoundError:
        raise InputError(
            f"not a prepared set (no {MANIFEST})",
            path=folder,
            remedy="name the output of prepare_dataset --type prompt",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"not the ledger of a prepared set ({type(error).__name__}: {error})", path=path, remedy="prepare it again"
        ) from None
    if kind != "prompt":
        raise InputError(f"is a set of type {kind}, not prompt", path=folder, remedy="prepare it with --type prompt")
    return manifest


def _open_parts(folder: Path, manifest: dict[str, Any]) -> list[_Part]:
    parts = []
    for entry in manifest["buckets"]:
        path = folder / part_name(int(entry["bucket"])) / ARROW_FILE
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_stream(source).read_all()
        except (OSError, ValueError) as error:
            raise InputError(f"cannot be read ({error})", path=path, remedy="prepare the set again") from None
        if table.column_names != list(PROMPT_COLUMNS) or table.num_rows != int(entry["rows"]):
            raise InputError(f"is not what {MANIFEST} says", path=path, remedy="prepare the set again")
        parts.append(_Part(int(entry["bucket"]), table, str(entry["arrow_sha256"])))
    return parts
