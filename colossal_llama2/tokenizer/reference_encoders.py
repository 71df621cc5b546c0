"""The encoders that are the truth of a tokenizer: SentencePiece for its models, `tokenizers` for the rest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, pre_tokenizers, processors

from colossal_llama2.tokenizer.encoder import Again, EncodedTexts, Encoder, Ids, Spans, Vocabulary
from colossal_llama2.tokenizer.piece_model import (
    BYTE,
    NORMAL,
    SPACE_MARK,
    USER_DEFINED,
    PieceModel,
    has_identity_normalizer,
)
from colossal_llama2.tokenizer.seams import TokenWidths


class PieceEncoder(Encoder):
    """SentencePiece itself: the truth, and in C++ threads."""

    kind = "sentencepiece"

    def __init__(self, model: PieceModel, vocabulary: Vocabulary, num_threads: int, again: Again) -> None:
        super().__init__(vocabulary, again)
        self._model = model
        self._processor = SentencePieceProcessor(model_proto=model.SerializeToString())
        self._num_threads = num_threads

    def _encode(self, texts: Sequence[str]) -> EncodedTexts:
        return _joined(self._processor.encode(list(texts), out_type="numpy", num_threads=self._num_threads))

    @cached_property
    def _widths(self) -> TokenWidths | None:
        """A space mark stands for a space; a model that changes text has no widths."""
        if not has_identity_normalizer(self._model):
            return None
        widths = np.full(len(self._model.pieces), -1, dtype=np.int32)
        for index, entry in enumerate(self._model.pieces):
            if entry.type == BYTE:
                widths[index] = 1
            elif entry.type in (NORMAL, USER_DEFINED):
                widths[index] = len(entry.piece.replace(SPACE_MARK, " ").encode())
        return TokenWidths(widths, int(self._model.normalizer_spec.add_dummy_prefix))

    def _spans(self, text: str) -> Spans:
        spans: Spans = self._processor.encode(text, out_type="offset_mapping")["offsets"]
        return spans


class FastEncoder(Encoder):
    """A `tokenizers` tokenizer: the truth of folders without a SentencePiece model."""

    kind = "tokenizers"

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary, again: Again) -> None:
        super().__init__(vocabulary, again)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        # The file's own post-processor may trim spaces off the offsets; nothing is added here, so none is needed.
        tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
        self._tokenizer = tokenizer

    def _encode(self, texts: Sequence[str]) -> EncodedTexts:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return _joined(np.array(encoding.ids, dtype=np.int32) for encoding in encodings)

    @cached_property
    def _widths(self) -> TokenWidths | None:
        """Every letter of a byte-level token is a byte; nothing else is known to cut text without changing it."""
        content = json.loads(self._tokenizer.to_str())
        if content["normalizer"] is not None or not _is_byte_level(content["pre_tokenizer"]):
            return None
        alphabet = set(pre_tokenizers.ByteLevel.alphabet())
        added = {token["content"] for token in content["added_tokens"]}
        widths = np.full(self.num_tokens, -1, dtype=np.int32)
        for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            is_bytes = token not in added and alphabet.issuperset(token)
            widths[index] = len(token) if is_bytes else len(token.encode())
        return TokenWidths(widths, 0)

    def _spans(self, text: str) -> Spans:
        spans: Spans = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return spans


def _joined(parts: Iterable[Ids]) -> EncodedTexts:
    parts = list(parts)
    offsets = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    return EncodedTexts(ids.astype(np.int32, copy=False), offsets)


def _is_byte_level(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Tell whether a ``tokenizer.json`` writes every byte of a text as a letter and puts no space before it."""
    if pre_tokenizer is None:
        return False
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    known = all(step["type"] in ("ByteLevel", "Split", "Digits", "Punctuation") for step in steps)
    kept = all(step.get("behavior", "Isolated") != "Removed" for step in steps)
    byte_level = [step for step in steps if step["type"] == "ByteLevel"]
    return known and kept and len(byte_level) == 1 and not byte_level[0].get("add_prefix_space", True)
