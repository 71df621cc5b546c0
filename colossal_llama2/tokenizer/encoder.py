"""Plain text to ids, many texts at a time, by the fastest encoder that is exact for the tokenizer at hand."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from colossal_llama2.tokenizer.seams import TokenWidths, byte_sizes, find_seam_in, find_seams

Ids = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]
Spans = Sequence[tuple[int, int]]
Again = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids of several texts: text i has ``ids[offsets[i]:offsets[i + 1]]``.

    Attributes:
        ids: int32, the ids of all texts one after the other.
        offsets: int64, one more than there are texts; the first is 0, the last is the length of `ids`.
        sizes: int64, the bytes of each text in UTF-8, where whoever encoded them had counted them anyway.
    """

    ids: Ids
    offsets: Offsets
    sizes: npt.NDArray[np.int64] | None = None

    def of(self, index: int) -> Ids:
        """Return the ids of one text."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True)
class Vocabulary:
    """What a reader of ids must know of a tokenizer: how many there are, which ones are special, and its hash."""

    num_tokens: int
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    fingerprint: str


class Encoder(ABC):
    """Encodes plain text: no token is put around it, and what looks like a special token in it stays text.

    Attributes:
        kind: the library that does the work: ``sentencepiece``, ``tokenizers`` or ``gigatoken``.
        proof: the name of the proof that it is equal to the reference; None for the reference itself.
        num_tokens: every id is below it.
        bos_token_id: the token a document begins with, if the tokenizer has one.
        eos_token_id: the token a document ends with, if the tokenizer has one.
        pad_token_id: the padding token, if the tokenizer has one.
        fingerprint: see `tokenizer_fingerprint`.
        again: the call that makes it in another process.
    """

    kind: str
    proof: str | None = None

    def __init__(self, vocabulary: Vocabulary, again: Again) -> None:
        self.vocabulary = vocabulary
        self.num_tokens = vocabulary.num_tokens
        self.bos_token_id = vocabulary.bos_token_id
        self.eos_token_id = vocabulary.eos_token_id
        self.pad_token_id = vocabulary.pad_token_id
        self.fingerprint = vocabulary.fingerprint
        self.again = again

    def __reduce__(self) -> Again:
        """Pickle as the call that made it: a worker process loads its own, and repeats no proof."""
        return self.again

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode each text on its own.

        Raises:
            UnicodeEncodeError: a text holds half a surrogate pair, which is no text.
        """
        if not texts:
            return EncodedTexts(np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int64))
        try:
            return self._encode(texts)
        except (RuntimeError, TypeError):
            for text in texts:  # each library has a complaint of its own about half a surrogate pair
                text.encode()
            raise

    def encode_arrow(self, texts: pa.Array) -> EncodedTexts:
        """Encode an Arrow array of strings; gigatoken reads its buffers where they lie.

        Args:
            texts: ``string`` or ``large_string``, without nulls.

        Raises:
            ValueError: another type, nulls, or bytes that are not UTF-8 (Arrow does not look when it reads a file).
        """
        return self.encode(checked_strings(texts).to_pylist())

    def encode_with_split(self, texts: Sequence[str], splits: Sequence[int]) -> tuple[EncodedTexts, Ids]:
        """Encode each text in one piece, and count the tokens that lie wholly inside its beginning.

        Args:
            texts: the texts.
            splits: for each text, how many of its characters are the beginning.

        Returns:
            The encoded texts, and for each text (int32) how many leading tokens end within the first ``splits[i]``
            characters. A token that straddles the split is not counted, nor is any byte of a character behind it.
            The dummy prefix counts when the split is not 0.
        """
        encoded, counts, _ = self.encode_with_seam(texts, splits)
        return encoded, counts

    def encode_with_seam(
        self, texts: Sequence[str], splits: Sequence[int]
    ) -> tuple[EncodedTexts, Ids, npt.NDArray[np.bool_]]:
        """Do as `encode_with_split`, and tell of each text (bool) whether a token lies on both sides of its split."""
        encoded = self.encode(texts)
        if not any(splits):
            return encoded, np.zeros(len(texts), dtype=np.int32), np.zeros(len(texts), dtype=np.bool_)
        splits = [min(max(split, 0), len(text)) for text, split in zip(texts, splits, strict=True)]
        if self._widths is None:
            counts, straddles = np.zeros(len(texts), dtype=np.int32), np.zeros(len(texts), dtype=np.bool_)
            uncertain = np.arange(len(texts))
        else:
            seams = byte_sizes([text[:split] for text, split in zip(texts, splits, strict=True)])
            sizes = byte_sizes(texts) if encoded.sizes is None else encoded.sizes
            counts, straddles, whole = find_seams(encoded, sizes, seams, self._widths)
            encoded = replace(encoded, sizes=sizes)
            uncertain = np.flatnonzero(~whole)
        for index in uncertain.tolist():
            text, split = texts[index], splits[index]
            if split == len(text):
                counts[index] = len(encoded.of(index))
            elif split > 0:
                counts[index], straddles[index] = find_seam_in(self._spans(text), split)
        return encoded, counts, straddles

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode one text or more."""

    @property
    @abstractmethod
    def _widths(self) -> TokenWidths | None:
        """What each token stands for, where that can be said of the token alone."""

    @abstractmethod
    def _spans(self, text: str) -> Spans:
        """Return the characters (begin, end) that each token of a text stands for; see `find_seam_in`."""


def set_parallelism(num_threads: int) -> None:
    """Say how many threads `tokenizers` may use in this process; it reads that once, at its first batch."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if num_threads > 1 else "false"
    if num_threads > 1:
        set_pool_size(num_threads)


def set_pool_size(num_threads: int) -> None:
    """Say how many threads the pools of `tokenizers` and gigatoken may have; each reads it once, at its first use."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(num_threads))


def checked_strings(texts: pa.Array) -> pa.LargeStringArray:
    """Return an Arrow array of strings with 64-bit offsets, every byte of it looked at.

    Raises:
        ValueError: see `Encoder.encode_arrow`.
    """
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise ValueError(f"an Arrow array of strings is needed, not of {texts.type}")
    if texts.null_count:
        raise ValueError(f"{texts.null_count} of {len(texts)} texts are null")
    texts.validate(full=True)
    return texts.cast(pa.large_string())
