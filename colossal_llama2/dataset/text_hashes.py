"""What texts are compared by: a hash of every character, or a MinHash signature of what they are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from colossal_llama2.errors import InputError

Deduplicate = Literal["none", "exact", "minhash"]

SIGNATURE_SLOTS: Final = 128
SHINGLE_BYTES: Final = 15
"""A shingle is five Chinese characters or fifteen letters: so many bytes of UTF-8 from the beginning of a character."""

_SEED: Final = 1
_GROUP_BYTES = 1 << 20
_WHITESPACE = b" \t\r\n\x0b\x0c"
_LOWER = bytes(byte + 32 if 65 <= byte <= 90 else byte for byte in range(256))
_MIX = [np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xBF58476D1CE4E5B9)]


def text_hashes(texts: Sequence[str], deduplicate: Deduplicate) -> npt.NDArray[Any]:
    """Return what each text is compared by.

    Args:
        texts: documents, source and target as one.
        deduplicate: "exact" or "minhash".

    Returns:
        exact: [N, 2] uint64, a hash of 128 bits of every byte. minhash: [N, 128] uint32, the signature of the text's
        shingles without spaces and with small Latin letters.

    Raises:
        InputError: the library for signatures is not installed.
    """
    if deduplicate == "exact":
        digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)
    rows = [np.zeros((0, SIGNATURE_SLOTS), dtype=np.uint32)]
    waiting: list[bytes] = []
    held = 0
    for text in texts:
        waiting.append(_plain(text))
        held += len(waiting[-1])
        if held > _GROUP_BYTES:
            rows += [_signatures(waiting[:-1])] if waiting[1:] else []
            rows.append(_signature_of_parts(waiting[-1:]))
            waiting, held = [], 0
    return np.concatenate([*rows, _signatures(waiting)] if waiting else rows)


def hash_of_chunks(chunks: Iterable[str], deduplicate: Deduplicate) -> npt.NDArray[Any]:
    """Return what `text_hashes` gives for one text that comes in chunks, as one row.

    Raises:
        InputError: the library for signatures is not installed.
    """
    if deduplicate == "exact":
        digest = hashlib.blake2b(digest_size=16)
        for chunk in chunks:
            digest.update(chunk.encode())
        return np.frombuffer(digest.digest(), dtype="<u8").reshape(1, 2)
    return _signature_of_parts(map(_plain, chunks))


def hash_version(deduplicate: Deduplicate) -> str:
    """Spell out what decides the hashes beside the texts; kept hashes of another version are of no use."""
    if deduplicate != "minhash":
        return deduplicate
    library = _library()
    return f"minhash {SIGNATURE_SLOTS} {SHINGLE_BYTES} {_SEED} rensa {library.RMinHash.ALGORITHM_VERSION}"


def _library() -> ModuleType:
    try:
        import rensa
    except ImportError:
        raise InputError(
            "--deduplicate minhash needs the package rensa, which is not installed",
            remedy="pip install 'rensa>=0.5,<0.6'",
        ) from None
    library: ModuleType = rensa
    return library


def _plain(text: str) -> bytes:
    """Leave out what copies of a page differ by: spaces, line breaks, capitals."""
    return text.encode().translate(_LOWER, _WHITESPACE)


def _signature_of_parts(parts: Iterable[bytes]) -> npt.NDArray[np.uint32]:
    """Return [1, 128] the signature of a text of any length.

    A signature holds the smallest value of each slot, so that a text's is the smallest of those of its parts.
    """
    signature = np.full((1, SIGNATURE_SLOTS), np.iinfo(np.uint32).max, dtype=np.uint32)
    rest = b""
    for part in parts:
        rest += part
        begin = 0
        while len(rest) - begin >= 2 * _GROUP_BYTES:
            group = rest[begin : begin + _GROUP_BYTES + SHINGLE_BYTES - 1]
            signature = np.minimum(signature, _signatures([group]))
            begin += _GROUP_BYTES
        rest = rest[begin:]
    return np.minimum(signature, _signatures([rest]))


def _signatures(plain: Sequence[bytes]) -> npt.NDArray[np.uint32]:
    """Return [N, 128] the signatures of texts; one that is shorter than a shingle is one shingle."""
    padded = [text.ljust(SHINGLE_BYTES, b"\0") for text in plain]
    ends = np.cumsum([len(text) for text in padded])
    content = np.frombuffer(b"".join(padded) + b"\0", dtype=np.uint8)
    begins_character = (content & 0xC0) != 0x80
    for end in ends.tolist():
        begins_character[end - SHINGLE_BYTES + 1 : end] = False  # a shingle does not reach into the next text
    begins_character[ends[-1] :] = False
    places = np.flatnonzero(begins_character)
    offsets = [0, *np.searchsorted(places, ends).tolist()]
    matrix = _library().RMinHash.digest_matrix_from_flat_token_hashes(
        _shingles(content, places), offsets, SIGNATURE_SLOTS, _SEED
    )
    return np.array(matrix.to_rows(), dtype=np.uint32)


def _shingles(content: npt.NDArray[np.uint8], places: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Hash the 15 bytes at each place, read as two words of eight that overlap in one."""
    words = np.ndarray((len(content) - 7,), dtype="<u8", buffer=content, strides=(1,))
    mixed: npt.NDArray[np.uint64] = words[places] * _MIX[0]
    mixed ^= mixed >> np.uint64(32)
    mixed += words[places + (SHINGLE_BYTES - 8)] * _MIX[1]
    mixed ^= mixed >> np.uint64(29)
    mixed *= _MIX[2]
    mixed ^= mixed >> np.uint64(32)
    return mixed
