"""What clients call the models: their folders' names, made distinct."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from colossal_llama2.errors import InputError


def model_names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: its last part, or as many last parts as tell it from the others.

    Raises:
        InputError: a folder is named twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for position, own in enumerate(parts):
        if own in parts[:position]:
            raise InputError("is named twice", path=folders[position], remedy="give each model once")
    lengths = [1] * len(parts)
    while True:
        names = [
            "/".join(part.strip("/") for part in own[-length:]) for own, length in zip(parts, lengths, strict=True)
        ]
        counts = Counter(names)
        if max(counts.values(), default=1) == 1:
            return names
        lengths = [length + (counts[name] > 1) for name, length in zip(names, lengths, strict=True)]
