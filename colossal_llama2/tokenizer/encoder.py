"""Plain text to ids, many texts at a time, by the fastest encoder that is exact for the tokenizer at hand."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, processors

from colossal_llama2.tokenizer.piece_model import (
    BYTE,
    NORMAL,
    SPACE_MARK,
    USER_DEFINED,
    PieceModel,
    has_identity_normalizer,
)

Ids = npt.NDArray[np.int32]

# An id without a width of its own (unknown, control): makes the widths of a text miss its length for certain.
_NO_WIDTH: Final = -(1 << 40)


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids of several texts: text i has ``ids[offsets[i]:offsets[i + 1]]``.

    Attributes:
        ids: int32, the ids of all texts one after the other.
        offsets: int64, one more than there are texts; the first is 0, the last is the length of `ids`.
    """

    ids: Ids
    offsets: npt.NDArray[np.int64]


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
        num_tokens: every id is below it.
        bos_token_id: the token a document begins with, if the tokenizer has one.
        eos_token_id: the token a document ends with, if the tokenizer has one.
        pad_token_id: the padding token, if the tokenizer has one.
        fingerprint: see `tokenizer_fingerprint`.
    """

    def __init__(self, vocabulary: Vocabulary, again: tuple[Callable[..., Encoder], tuple[Any, ...]]) -> None:
        self.num_tokens = vocabulary.num_tokens
        self.bos_token_id = vocabulary.bos_token_id
        self.eos_token_id = vocabulary.eos_token_id
        self.pad_token_id = vocabulary.pad_token_id
        self.fingerprint = vocabulary.fingerprint
        self._again = again

    def __reduce__(self) -> tuple[Callable[..., Encoder], tuple[Any, ...]]:
        """Pickle as the call that made it: a worker process loads its own."""
        return self._again

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode each text on its own."""

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
        counts = np.zeros(len(texts), dtype=np.int32)
        straddles = np.zeros(len(texts), dtype=np.bool_)
        for index, (text, split) in enumerate(zip(texts, splits, strict=True)):
            if split <= 0:
                continue
            ids = encoded.ids[encoded.offsets[index] : encoded.offsets[index + 1]]
            if split >= len(text):
                counts[index] = len(ids)
            else:
                counts[index], straddles[index] = self._find_seam(text, split, ids)
        return encoded, counts, straddles

    @abstractmethod
    def _find_seam(self, text: str, split: int, ids: Ids) -> tuple[int, bool]:
        """Count the leading tokens wholly inside the first `split` characters, and tell whether the next straddles it.

        The split lies inside the text: 0 < split < len(text).
        """


class PieceEncoder(Encoder):
    """SentencePiece itself: the truth, and in C++ threads."""

    def __init__(
        self,
        model: PieceModel,
        vocabulary: Vocabulary,
        num_threads: int,
        again: tuple[Callable[..., Encoder], tuple[Any, ...]],
    ) -> None:
        super().__init__(vocabulary, again)
        self._processor = SentencePieceProcessor(model_proto=model.SerializeToString())
        self._num_threads = num_threads
        self._has_prefix = bool(model.normalizer_spec.add_dummy_prefix)
        self._widths = _piece_widths(model) if has_identity_normalizer(model) else None

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode each text on its own."""
        if not texts:
            return _joined([])
        return _joined(self._processor.encode(list(texts), out_type="numpy", num_threads=self._num_threads))

    def _find_seam(self, text: str, split: int, ids: Ids) -> tuple[int, bool]:
        """Add up the widths of the pieces where they account for every byte of the text, else ask for offsets."""
        if self._widths is not None:
            ends = np.cumsum(self._widths[ids]) - int(self._has_prefix)
            if len(ends) and ends[-1] == len(text.encode()):
                seam = len(text[:split].encode())
                count = int(np.searchsorted(ends, seam, side="right"))
                return count, count == 0 or bool(ends[count - 1] < seam)
        spans = self._processor.encode(text, out_type="offset_mapping")["offsets"]
        return _find_seam_in(spans, split)


class FastEncoder(Encoder):
    """A `tokenizers` tokenizer, for folders without a SentencePiece model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        again: tuple[Callable[..., Encoder], tuple[Any, ...]],
    ) -> None:
        super().__init__(vocabulary, again)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        # The file's own post-processor may trim spaces off the offsets; nothing is added here, so none is needed.
        tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode each text on its own."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return _joined(np.array(encoding.ids, dtype=np.int32) for encoding in encodings)

    def _find_seam(self, text: str, split: int, ids: Ids) -> tuple[int, bool]:
        spans = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return _find_seam_in(spans, split)


def set_parallelism(num_threads: int) -> None:
    """Say how many threads `tokenizers` may use in this process; it reads that once, at its first batch."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if num_threads > 1 else "false"
    if num_threads > 1:
        os.environ.setdefault("RAYON_NUM_THREADS", str(num_threads))


def _joined(parts: Iterable[Ids]) -> EncodedTexts:
    parts = list(parts)
    offsets = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    return EncodedTexts(ids.astype(np.int32, copy=False), offsets)


def _piece_widths(model: PieceModel) -> npt.NDArray[np.int64]:
    """Return how many bytes of UTF-8 text each piece stands for; a space mark stands for a space."""
    widths = np.full(len(model.pieces), _NO_WIDTH, dtype=np.int64)
    for index, entry in enumerate(model.pieces):
        if entry.type == BYTE:
            widths[index] = 1
        elif entry.type in (NORMAL, USER_DEFINED):
            widths[index] = len(entry.piece.replace(SPACE_MARK, " ").encode())
    return widths


def _find_seam_in(spans: Sequence[tuple[int, int]], split: int) -> tuple[int, bool]:
    """Count leading spans that lie within `split` characters (more than 0); tell whether the next begins within.

    Of the bytes of one character only the last has a span; the others are empty and stand where the character
    begins, so an empty span belongs to what begins there.
    """
    for count, (begin, end) in enumerate(spans):
        if end > split or (begin == end and begin >= split):
            return count, begin < split
    return len(spans), False
