"""Ids to text while they come, without tearing a character apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns generated ids into text one at a time; what is put together of bytes appears when it is whole.

    The parts joined are the text of all ids: with a SentencePiece vocabulary exactly what SentencePiece decodes (a
    byte that belongs to no character becomes U+FFFD), with a byte-level one what the tokenizer decodes.

    Args:
        tokenizer: a fast transformers tokenizer.
        prompt_ids: ids before the first generated one; they decide whether a space stands between.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        model = tokenizer.backend_tokenizer.model
        self._has_bytes = bool(getattr(model, "byte_fallback", False))
        self._context = [index for index in prompt_ids if index not in self._special][-1:]
        self._bytes = b""
        self._held: list[int] = []

    def put(self, index: int) -> str:
        """Take the next id and return the text that is certain now, possibly none."""
        if index in self._special:
            return self._flush()
        if self._has_bytes:
            byte = _BYTE_PIECE.fullmatch(self._tokenizer.convert_ids_to_tokens(index))
            if byte is not None:
                self._context = [index]
                return self._take_byte(bytes.fromhex(byte[1]))
            text = self._flush() + self._decode_after_context([index])
            self._context = [index]
            return text
        self._held.append(index)
        text = self._decode_after_context(self._held)
        # A byte-level vocabulary may hold the rest of the last character in the next token.
        return "" if text.endswith(_REPLACEMENT) else self._release(text)

    def end(self) -> str:
        """Return what is still held back."""
        return self._flush()

    def _flush(self) -> str:
        if self._held:
            return self._release(self._decode_after_context(self._held))
        text, self._bytes = _REPLACEMENT * len(self._bytes), b""
        return text

    def _release(self, text: str) -> str:
        self._context, self._held = self._held[-1:], []
        return text

    def _decode_after_context(self, ids: list[int]) -> str:
        """Decode ids as they read behind the token before them: alone, the first would lose its leading space."""
        before = self._decode(self._context)
        return self._decode(self._context + ids)[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _take_byte(self, byte: bytes) -> str:
        self._bytes += byte
        text = ""
        while self._bytes:
            size = _character_size(self._bytes)
            if size is None:
                break
            text += self._bytes[:size].decode("utf-8") if size else _REPLACEMENT
            self._bytes = self._bytes[size or 1 :]
        return text


def _character_size(head: bytes) -> int | None:
    """Return the size of the UTF-8 character at the start of `head`, 0 if none can begin so, None if more must come."""
    try:
        head[:4].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start == 0:
            return None if error.reason == "unexpected end of data" else 0
    lead = head[0]
    return 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
