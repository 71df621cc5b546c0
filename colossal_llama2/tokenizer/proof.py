"""Proof that an encoder gives the ids of the reference, made once for a tokenizer and remembered on disk."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from colossal_llama2.errors import InputError
from colossal_llama2.outputs import whole_file
from colossal_llama2.tokenizer.encoder import EncodedTexts, Encoder

PROOF_VERSION: Final = 1
CACHE_VARIABLE: Final = "COLOSSAL_LLAMA2_CACHE_DIR"
_BATCH: Final = 4096
_NOT_ITS_FAULT: Final = (KeyboardInterrupt, SystemExit, MemoryError, OSError, ImportError)


@dataclass(frozen=True)
class Verdict:
    """What came of a proof.

    Attributes:
        texts: how many were compared.
        difference: the first text that came out otherwise, and both its beginnings; None if all were equal.
    """

    texts: int
    difference: str | None


def proof_key(parts: Sequence[bytes], packages: Sequence[str]) -> str:
    """Return the name (hex) of a proof: of what is compared, how, and by which versions, on which kind of processor.

    Args:
        parts: what describes both encoders completely.
        packages: the installed packages whose versions count.
    """
    deciding = [PROOF_VERSION, platform.machine(), *((name, version(name)) for name in packages)]
    digests = [hashlib.sha256(part).hexdigest() for part in parts]
    return hashlib.sha256(json.dumps([deciding, digests]).encode()).hexdigest()


def prove(reference: Encoder, candidates: Sequence[Encoder], texts: Iterable[str]) -> Verdict:
    """Compare each candidate with the reference on every text, up to the first difference.

    A candidate that fails on a text, in whatever way it can be caught, differs on it.
    """
    compared = 0
    stream = iter(texts)
    while batch := list(islice(stream, _BATCH)):
        expected = reference.encode(batch)
        for candidate in candidates:
            try:
                found = candidate.encode(batch)
            except BaseException as error:  # a panic in Rust is not an Exception
                if isinstance(error, _NOT_ITS_FAULT):
                    raise
                return Verdict(compared, f"{candidate.kind} fails ({type(error).__name__}: {error})")
            place = _first_difference(expected, found)
            if place is not None:
                return Verdict(compared + place, _describe(batch[place], expected.of(place), found.of(place)))
        compared += len(batch)
    return Verdict(compared, None)


def recall(key: str) -> Verdict | None:
    """Return the verdict of an earlier proof, or None; a damaged file is none."""
    try:
        content = json.loads((_folder() / f"{key}.json").read_text(encoding="utf-8"))
        verdict = Verdict(int(content["texts"]), content["difference"])
        known = verdict.difference is None or isinstance(verdict.difference, str)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return verdict if known else None


def remember(key: str, verdict: Verdict) -> None:
    """Write a verdict where `recall` finds it; where nothing can be written the next process proves again."""
    try:
        with whole_file(_folder() / f"{key}.json", overwrite=True) as work:
            work.write_text(json.dumps(asdict(verdict), ensure_ascii=True), encoding="utf-8")
    except (OSError, InputError):
        return


def _folder() -> Path:
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named) / "proofs"
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # no home
        raise OSError(str(error)) from None
    return cache / "colossal_llama2" / "proofs"


def _first_difference(expected: EncodedTexts, found: EncodedTexts) -> int | None:
    """Return the first text whose ids differ."""
    if np.array_equal(expected.offsets, found.offsets) and np.array_equal(expected.ids, found.ids):
        return None
    for index in range(len(expected.offsets) - 1):
        if index >= len(found.offsets) - 1 or not np.array_equal(expected.of(index), found.of(index)):
            return index
    return len(expected.offsets) - 2


def _describe(text: str, expected: np.ndarray, found: np.ndarray) -> str:
    """Say which text differs, and how, in a line: around the first token that is another."""
    common = min(len(expected), len(found))
    unequal = np.flatnonzero(expected[:common] != found[:common])
    place = int(unequal[0]) if len(unequal) else common
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    around = slice(max(place - 2, 0), place + 4)
    return f"{shown!r} is {expected[around].tolist()} and {found[around].tolist()} from token {around.start} on"
