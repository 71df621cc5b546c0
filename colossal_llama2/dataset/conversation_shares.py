"""Which examples go where: stages that share a source, a part held out, sources that count more or less than once.

Everything is decided by an example's key, so that the same prompt is never on both sides, and by exact fractions, so
that it is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.inputs import InputFile
from colossal_llama2.errors import InputError

KEYS: Final = 1 << 64
STAGES: Final = ("sft", "preference", "prompt")
_MAX_WEIGHT: Final = 1000
_HOLDOUT, _WEIGHTS = 1, 2  # what a shuffled key is for


def stage_keys(data_split: str, stage: str) -> tuple[int, int]:
    """Return which keys belong to a stage: from the first number up to the second.

    Args:
        data_split: shares of sft, preference and prompt, as ``2,4,4``; empty for everything to every stage.
        stage: one of these.

    Raises:
        InputError: not three shares, or none of them is left for the stage.
    """
    if not data_split.strip():
        return 0, KEYS
    try:
        shares = [Fraction(part.strip()) for part in data_split.split(",")]
    except (ValueError, ZeroDivisionError):
        shares = []
    if len(shares) != len(STAGES) or min(shares) < 0 or not sum(shares):
        raise InputError(
            f"--data_split is {data_split!r}", remedy="give the shares of sft, preference and prompt, as 2,4,4"
        )
    number = STAGES.index(stage)
    if not shares[number]:
        raise InputError(f"--data_split {data_split} leaves nothing for --type {stage}", remedy="give it a share")
    ends = [int(KEYS * sum(shares[:count], Fraction(0)) / sum(shares)) for count in range(len(shares) + 1)]
    return ends[number], ends[number + 1]


def parse_holdout(text: str) -> Fraction:
    """Turn ``1%`` or ``0.01`` into a fraction.

    Raises:
        InputError: neither, or not from 0 to less than 1.
    """
    try:
        value = Fraction(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if not 0 <= value < 1:
        raise InputError(f"--holdout is {text!r}", remedy="give a share of the examples, as 1% or 0.01")
    return value


def file_weights(text: str, files: Sequence[InputFile]) -> list[Fraction]:
    """Return how often each file counts, from ``a=2,b=0.5``.

    A name is that of a file in the ledger, its last part with or without ``.jsonl``, or the folder that was named.

    Raises:
        InputError: malformed, a name of no file, or a file that two names mean.
    """
    weights = [Fraction(1)] * len(files)
    named: dict[int, str] = {}
    for part in (part.strip() for part in text.split(",") if part.strip()):
        name, equals, value = (piece.strip() for piece in part.rpartition("="))
        try:
            weight = Fraction(value)
        except (ValueError, ZeroDivisionError):
            weight = Fraction(-1)
        if not equals or not name or not 0 <= weight <= _MAX_WEIGHT:
            raise InputError(f"--weights says {part!r}", remedy=f"write NAME=NUMBER, the number up to {_MAX_WEIGHT}")
        meant = [number for number, file in enumerate(files) if name in _names(file)]
        if not meant:
            known = ", ".join(sorted({file.path.stem for file in files})[:10])
            raise InputError(f"--weights names {name!r}, which is no input", remedy=f"name one of {known}")
        for number in meant:
            if number in named:
                both = f"both {named[number]!r} and {name!r} of --weights mean {files[number].name}"
                raise InputError(both, remedy="name it once")
            named[number], weights[number] = name, weight
    return weights


def choose_holdout(
    keys: npt.NDArray[np.uint64], sources: npt.NDArray[np.int64], share: Fraction, seed: int
) -> npt.NDArray[np.bool_]:
    """Choose the examples that are held out: the share of each source, and at least one where it has two or more.

    Examples of one key go together, in whatever source they are, so a little more than the share may be held out.

    Args:
        keys: [N] key of each example.
        sources: [N] source of each.
        share: from 0 to less than 1.
        seed: decides which.
    """
    if not share:
        return np.zeros(len(keys), dtype=np.bool_)
    held: list[npt.NDArray[np.uint64]] = []
    for source in np.unique(sources):
        own = np.unique(keys[sources == source])
        count = max(_rounded(share * len(own)), 1) if len(own) > 1 else 0
        held.append(own[np.argsort(_shuffled(own, seed, _HOLDOUT), kind="stable")[:count]])
    return np.isin(keys, np.concatenate(held)) if held else np.zeros(len(keys), dtype=np.bool_)


def count_copies(
    keys: npt.NDArray[np.uint64], sources: npt.NDArray[np.int64], weights: Sequence[Fraction], seed: int
) -> npt.NDArray[np.int64]:
    """Return how often each example is taken: the whole part of its source's weight, and the rest for a share of them.

    Args:
        keys: [N] key of each example.
        sources: [N] source of each.
        weights: [S] how often each source counts.
        seed: decides which are taken once more.
    """
    copies = np.zeros(len(keys), dtype=np.int64)
    for source, weight in enumerate(weights):
        own = np.flatnonzero(sources == source)
        copies[own] = int(weight)
        more = _rounded((weight - int(weight)) * len(own))
        copies[own[np.argsort(_shuffled(keys[own], seed, _WEIGHTS), kind="stable")[:more]]] += 1
    return copies


def _names(file: InputFile) -> set[str]:
    return {file.name, file.path.name, file.path.stem, file.name.split("/", maxsplit=1)[0]}


def _rounded(value: Fraction) -> int:
    return int(value + Fraction(1, 2))


def _shuffled(keys: npt.NDArray[Any], seed: int, purpose: int) -> npt.NDArray[np.uint64]:
    """Mix keys with a seed (splitmix64, Steele et al. 2014), so that each purpose sees another order."""
    start = np.uint64((seed * 4 + purpose) * 0x9E3779B97F4A7C15 % KEYS)
    mixed = keys.astype(np.uint64) + start
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
