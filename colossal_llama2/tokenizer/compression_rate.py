"""How many tokens a text costs: per character and per byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import read_jsonl
from colossal_llama2.tokenizer.documents import read_text, text_of_record
from colossal_llama2.tokenizer.encoder import Encoder


@dataclass(frozen=True)
class CompressionRate:
    """Counts of one sample under one tokenizer; tokens without bos and eos.

    Attributes:
        tokens: tokens of all texts.
        characters: Unicode characters of all texts.
        bytes: their length in UTF-8.
    """

    tokens: int
    characters: int
    bytes: int

    @property
    def tokens_per_character(self) -> float:
        """Tokens divided by characters; lower is better."""
        return self.tokens / max(self.characters, 1)

    @property
    def tokens_per_byte(self) -> float:
        """Tokens divided by bytes of UTF-8; lower is better."""
        return self.tokens / max(self.bytes, 1)


def measure_compression(encoder: Encoder, texts: Sequence[str]) -> CompressionRate:
    """Encode the texts and count."""
    return CompressionRate(
        tokens=len(encoder.encode(texts).ids),
        characters=sum(len(text) for text in texts),
        bytes=sum(len(text.encode()) for text in texts),
    )


def count_longer(before: Encoder, after: Encoder, texts: Sequence[str]) -> int:
    """Count the texts that one encoder needs more tokens for than another."""
    lengths = [np.diff(encoder.encode(texts).offsets) for encoder in (before, after)]
    return int(np.count_nonzero(lengths[1] > lengths[0]))


def read_sample(path: Path) -> list[str]:
    """Read the texts of a sample: the records of a ``.jsonl`` (source and target, or text), else the file as one text.

    Raises:
        InputError: the file cannot be read, is not UTF-8, holds no text, or a record has neither target nor text.
    """
    if path.suffix == ".jsonl":
        texts = [text_of_record(record, path, line) for line, record in read_jsonl(path)]
    else:
        texts = [read_text(path)]
    texts = [text for text in texts if text]
    if not texts:
        raise InputError("holds no text", path=path, remedy="give a sample with text in it")
    return texts
