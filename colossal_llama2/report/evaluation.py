"""Bits per byte: how well a model predicts text, in a unit that vocabularies share.

A document is ``bos`` followed by its tokens, encoded as for training. Every token of the learned part is scored given
everything before it; ``bos`` is given and ``eos`` is not asked for, so that the bits are those of the text alone, and
they are divided by the text's UTF-8 bytes. Both hold for any tokenizer, which a loss per token does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from colossal_llama2.tokenizer.loading import Encoder

Ids = npt.NDArray[np.int32]

# Positions whose logits are turned into fp32 at a time: 512 rows of 55,296 are 113 MB.
_ROWS_AT_A_TIME = 512


@dataclass(frozen=True)
class Text:
    """A document to score: `source` is read but not scored."""

    target: str
    source: str = ""


@dataclass(frozen=True)
class Document:
    """A document as ids.

    Attributes:
        ids: int32, its tokens without bos and eos.
        first_scored: index of the first token that is scored; those before it lie wholly in the source.
    """

    ids: Ids
    first_scored: int = 0


@dataclass(frozen=True)
class Window:
    """A stretch of one document that is given to the model at once.

    Attributes:
        document: index of the document.
        begin: first position of the stretch in the sequence that is bos followed by the document's tokens.
        end: position behind its last.
        first_scored: first position of that sequence scored here; an earlier window scored those before.
    """

    document: int
    begin: int
    end: int
    first_scored: int


@dataclass(frozen=True)
class Score:
    """What a set of texts costs a model.

    Attributes:
        documents: how many texts.
        characters: of sources and targets.
        tokens: of sources and targets.
        scored_bytes: UTF-8 bytes of the targets.
        bits: needed for the targets, given the sources.
    """

    documents: int
    characters: int
    tokens: int
    scored_bytes: int
    bits: float

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of the targets; 8 is what a model that knows nothing of text needs."""
        return self.bits / self.scored_bytes

    @property
    def tokens_per_character(self) -> float:
        """Tokens per character of the whole texts."""
        return self.tokens / self.characters


def evaluate(
    model: Any,
    encoder: Encoder,
    texts: Sequence[Text],
    start_token: int,
    window: int,
    progress: Callable[[int], object] = lambda done: None,
) -> Score:
    """Score texts with a causal language model.

    Args:
        model: called as ``model(input_ids=[B, S])``, giving ``.logits`` [B, S, V]; it must be in evaluation mode.
        encoder: its tokenizer.
        texts: at least one, each with a target of at least one byte.
        start_token: the token every document begins with.
        window: most tokens the model is given at once, at least 2.
        progress: called with the number of tokens read since the last call.

    Returns:
        The score of all texts together.
    """
    documents = encode(encoder, texts)
    bits = score_documents(model, documents, start_token, window, progress)
    return Score(
        documents=len(texts),
        characters=sum(len(text.source) + len(text.target) for text in texts),
        tokens=sum(len(document.ids) for document in documents),
        scored_bytes=sum(len(text.target.encode()) for text in texts),
        bits=float(bits.sum()),
    )


def encode(encoder: Encoder, texts: Sequence[Text]) -> list[Document]:
    """Encode each text in one piece, as the corpus is; a token straddling the end of the source is scored."""
    encoded, in_source = encoder.encode_with_split([t.source + t.target for t in texts], [len(t.source) for t in texts])
    bounds = zip(encoded.offsets[:-1], encoded.offsets[1:], in_source, strict=True)
    return [Document(encoded.ids[begin:end], int(first)) for begin, end, first in bounds]


def windows(index: int, document: Document, size: int) -> Iterator[Window]:
    """Cut a document into windows that score each of its scored tokens exactly once.

    Each window after the first begins half a window before the first position it scores, so no token of a long
    document is predicted from less than half a window (unless the document itself has less before it).

    Args:
        index: the document's index.
        document: its ids; position 0 of the sequence is bos, token i stands at position i + 1.
        size: positions in a window, at least 2.
    """
    length = len(document.ids) + 1
    scored = document.first_scored + 1
    while scored < length:
        begin = max(0, min(scored - size // 2, length - size))
        end = min(begin + size, length)
        yield Window(index, begin, end, scored)
        scored = end


def score_documents(
    model: Any,
    documents: Sequence[Document],
    start_token: int,
    window: int,
    progress: Callable[[int], object] = lambda done: None,
) -> npt.NDArray[np.float64]:
    """Return the bits of each document's scored tokens, [len(documents)].

    Windows of like length go through the model together, filled up behind, where a causal model does not look.
    """
    assert window >= 2
    plan = [w for index, document in enumerate(documents) for w in windows(index, document, window)]
    plan.sort(key=lambda w: w.begin - w.end)  # the longest first: memory runs out at once or never
    device = next(model.parameters()).device
    bits = np.zeros(len(documents))
    for group in _batches(plan, most_tokens=max(window, 4096)):
        rows = [np.append(np.int32(start_token), documents[w.document].ids)[w.begin : w.end] for w in group]
        for one, value in zip(group, _bits_of_rows(model, group, rows, device), strict=True):
            bits[one.document] += value
        progress(sum(len(row) for row in rows))
    return bits


@torch.no_grad()
def _bits_of_rows(model: Any, group: Sequence[Window], rows: Sequence[Ids], device: torch.device) -> list[float]:
    padded = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    input_ids = torch.from_numpy(padded).to(device)
    logits = model(input_ids=input_ids, use_cache=False).logits
    sums = []
    for i, (one, row) in enumerate(zip(group, rows, strict=True)):
        first = one.first_scored - one.begin
        sums.append(_bits_of_row(logits[i, first - 1 : len(row) - 1], input_ids[i, first : len(row)]))
    return sums


def _bits_of_row(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Sum -log2 p of `targets` [T] under `logits` [T, V]: softmax in fp32, the sum in fp64."""
    parts = zip(logits.split(_ROWS_AT_A_TIME), targets.split(_ROWS_AT_A_TIME), strict=True)
    nats = sum(F.cross_entropy(part.float(), target, reduction="none").double().sum().item() for part, target in parts)
    return float(nats / np.log(2.0))


def _batches(plan: Sequence[Window], most_tokens: int) -> Iterator[list[Window]]:
    """Group windows, longest first, so that a filled-up batch holds at most `most_tokens`."""
    group: list[Window] = []
    for one in plan:
        longest = group[0].end - group[0].begin if group else 0
        if group and longest * (len(group) + 1) > most_tokens:
            yield group
            group = []
        group.append(one)
    if group:
        yield group
