"""Texts to quantise by and texts to measure on: read, kept apart, and cut into rows of tokens."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.report.evaluate import read_texts
from colossal_llama2.report.evaluation import Text
from colossal_llama2.tokenizer.loading import Encoder


def read_documents(path: Path) -> list[Text]:
    """Read pretraining records from a .jsonl file, and from any other the paragraphs of plain text.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or holds no text.
    """
    if path.suffix == ".jsonl":
        return read_texts(path)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 ({error.reason} at byte {error.start})", path=path) from None
    paragraphs = [part.strip() for part in content.replace("\r\n", "\n").split("\n\n")]
    texts = [Text(part) for part in paragraphs if part]
    if not texts:
        raise InputError("holds no text", path=path, remedy="give plain text or jsonl with a `target`")
    return texts


def refuse_shared(calibration: Sequence[Text], evaluation: Sequence[Text], path: Path) -> None:
    """Refuse to measure on what was quantised by: the loss would look smaller than it is.

    Args:
        calibration: documents to quantise by.
        evaluation: documents to measure on.
        path: the file that the latter were read from.

    Raises:
        InputError: a document is in both.
    """
    known = {text.source + text.target for text in calibration}
    shared = sum(text.source + text.target in known for text in evaluation)
    if shared:
        raise InputError(
            f"{shared} of {len(evaluation)} documents are in the calibration text as well",
            path=path,
            remedy="measure on text that is held out",
        )


def calibration_rows(
    texts: Sequence[Text], encoder: Encoder, start_token: int, count: int, length: int, seed: int
) -> torch.Tensor:
    """Cut documents, in an order that the seed decides, into full rows of token ids.

    Each document begins with the start token, as in training; one follows the other without padding.

    Args:
        texts: the documents.
        encoder: the model's tokenizer.
        start_token: what a document begins with.
        count: rows wanted; fewer where the text is short, and said so.
        length: tokens of a row.
        seed: decides which documents come first.

    Returns:
        int64 [N, length], N at least 1.

    Raises:
        InputError: the text does not fill a single row.
    """
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    pieces: list[np.ndarray] = []
    tokens = 0
    for index in order:
        encoded = encoder.encode([texts[index].source + texts[index].target])
        pieces.append(np.append(np.int32(start_token), encoded.ids))
        tokens += len(pieces[-1])
        if tokens >= count * length:
            break
    rows = min(count, tokens // length)
    if rows < 1:
        raise InputError(
            f"the calibration text has {tokens} tokens, and a row {length}",
            remedy="give more text or a smaller --calibration_length",
        )
    if rows < count:
        cli.warn(f"the calibration text fills {rows} rows of {length} tokens, not {count}; all of it is used")
    flat = np.concatenate(pieces)[: rows * length].astype(np.int64)
    return torch.from_numpy(flat.reshape(rows, length))


def file_hash(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
