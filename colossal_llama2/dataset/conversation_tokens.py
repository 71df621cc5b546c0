"""Rendered conversations to token ids, and which of the tokens are learned.

A text is cut at the added tokens that the *template* writes; they become their ids. What stands between two of them is
encoded in one piece, contents and the template's plain words together, as transformers encodes it, and with special
tokens kept as text: `</s>` in what somebody said stays four characters, and cannot end a turn. Of a marker half written
by the template and half by a content nothing is made either.

A token is learned when it holds a character that is. So a token on the seam ahead of an answer (the blank that the
template writes and the first word) is learned, as is the dummy prefix of an answer that follows a marker.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.conversation_markers import Markers, strip_blanks
from colossal_llama2.dataset.conversation_spans import Located, Span
from colossal_llama2.tokenizer.encoder import EncodedTexts, Encoder, Ids


@dataclass(frozen=True)
class EncodedConversation:
    """Token ids of a conversation.

    Attributes:
        ids: [T] int32.
        learned: [T] bool; never the first token, which nothing stands before.
        piece_ends: [P] int64, characters of the rendered text up to the end of each piece between markers.
        piece_tokens: [P] int64, tokens up to there.
    """

    ids: Ids
    learned: npt.NDArray[np.bool_]
    piece_ends: npt.NDArray[np.int64]
    piece_tokens: npt.NDArray[np.int64]

    def tokens_before(self, character: int) -> int:
        """Return how many tokens stand at least before a character of the text."""
        place = int(np.searchsorted(self.piece_ends, character, side="right"))
        return int(self.piece_tokens[place - 1]) if place else 0


@dataclass(frozen=True)
class _Piece:
    """A marker, or text between two: characters [begin, end), and where in it learning begins or stops, in turn."""

    begin: int
    end: int
    marker_id: int | None
    learned: bool  # at its begin
    turns: tuple[int, ...] = ()


def encode_conversations(
    conversations: Sequence[Located], markers: Markers, encoder: Encoder
) -> list[EncodedConversation]:
    """Encode conversations, all their texts in one call of the encoder."""
    cut = [list(_pieces(located, markers)) for located in conversations]
    texts: list[str] = []
    splits: list[int] = []
    for located, pieces in zip(conversations, cut, strict=True):
        for piece in pieces:
            if piece.marker_id is None:
                # One split a text is what the encoder takes; a text with several is given several times, which is rare.
                places = piece.turns or (piece.begin,)
                texts += [located.text[piece.begin : piece.end]] * len(places)
                splits += [place - piece.begin for place in places]
    encoded = encoder.encode_with_seam(texts, splits)
    results, at = [], 0
    for pieces in cut:
        conversation, at = _assemble(pieces, encoded, at)
        results.append(conversation)
    return results


def _pieces(located: Located, markers: Markers) -> Iterator[_Piece]:
    """Yield markers and texts in order; blanks that a marker swallows belong to no piece."""
    text = located.text
    found = [found for begin, end in _literals(located.contents, len(text)) for found in markers.find(text, begin, end)]
    at, swallow = 0, False
    for marker in found:
        begin, end = strip_blanks(text, at, marker.begin, swallow, marker.marker.lstrip)
        if begin < end:
            yield _text_piece(begin, end, located.learned)
        learned = any(first <= marker.begin and marker.end <= last for first, last in located.learned)
        yield _Piece(marker.begin, marker.end, marker.marker.id, learned)
        at, swallow = marker.end, marker.marker.rstrip
    begin, end = strip_blanks(text, at, len(text), swallow, False)
    if begin < end:
        yield _text_piece(begin, end, located.learned)


def _literals(contents: Sequence[Span], length: int) -> Iterator[Span]:
    """Yield what stands between contents: what the template wrote."""
    at = 0
    for begin, end in contents:
        yield at, begin
        at = end
    yield at, length


def _text_piece(begin: int, end: int, learned: Sequence[Span]) -> _Piece:
    places = [place for span in learned for place in span]
    inside = any(first <= begin < last for first, last in learned)
    return _Piece(begin, end, None, inside, tuple(place for place in places if begin < place < end))


def _assemble(
    pieces: Sequence[_Piece], encoded: tuple[EncodedTexts, Ids, npt.NDArray[np.bool_]], at: int
) -> tuple[EncodedConversation, int]:
    """Put a conversation's pieces together; its texts begin at number `at`, and the number behind them is returned."""
    texts, counts, straddles = encoded
    ids: list[Ids] = []
    learned: list[npt.NDArray[np.bool_]] = []
    for piece in pieces:
        if piece.marker_id is not None:
            ids.append(np.array([piece.marker_id], dtype=np.int32))
            learned.append(np.array([piece.learned]))
            continue
        own = texts.ids[texts.offsets[at] : texts.offsets[at + 1]]
        mask = np.zeros(len(own), dtype=np.bool_)
        first = 0 if piece.learned else None
        for number in range(len(piece.turns)):
            if first is None:
                first = int(counts[at + number])
            else:
                mask[first : int(counts[at + number]) + int(straddles[at + number])] = True
                first = None
        if first is not None:
            mask[first:] = True
        ids.append(own)
        learned.append(mask)
        at += max(len(piece.turns), 1)
    all_learned = np.concatenate(learned) if learned else np.zeros(0, dtype=np.bool_)
    all_learned[:1] = False
    ends = np.array([piece.end for piece in pieces], dtype=np.int64)
    tokens = np.cumsum([len(part) for part in ids], dtype=np.int64)
    all_ids = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32)
    return EncodedConversation(all_ids, all_learned, ends, tokens), at
