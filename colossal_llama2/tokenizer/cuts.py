"""Where a long text may be cut so that its parts, encoded one by one, give the tokens of the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from colossal_llama2.tokenizer.encoder import Encoder
from colossal_llama2.tokenizer.folder import read_folder
from colossal_llama2.tokenizer.loading import read_model
from colossal_llama2.tokenizer.piece_model import (
    NORMAL,
    SPACE_MARK,
    USER_DEFINED,
    PieceModel,
    has_identity_normalizer,
)

Ids = npt.NDArray[np.int32]

_LEAD: Final = "\n"
_AROUND: Final = 2048
_MOST_TRIED: Final = 64


class StretchEncoder:
    """Encodes a text in stretches.

    A cut may stand between two characters that stand beside each other in no piece: no merge can cross it. Where the
    vocabulary cannot be asked that way (byte-level tokenizers, models that normalise), a cut stands behind a single
    line break between two characters that are no white space, where all published pre-tokenizers end a word. In both
    cases the text around the cut is encoded whole and in two, and must give the same tokens.

    Args:
        tokenizer_dir: the tokenizer's folder.
        encoder: its encoder.
    """

    def __init__(self, tokenizer_dir: Path, encoder: Encoder) -> None:
        self._encoder = encoder
        self._lead = encoder.encode([_LEAD]).ids
        folder = read_folder(tokenizer_dir)
        model = read_model(folder) if folder.model_file is not None else None
        self._may_cut = _between_pieces(model) if model is not None and _is_plain(model) else _behind_line_break

    def find_cut(self, text: str, keep: int = 1) -> int | None:
        """Return the last place before which a text may be cut, at least `keep` and behind no more than all of it.

        A few thousand characters at the end are not looked at, since what follows the text is not known.
        """
        tried = 0
        for place in range(len(text) - _AROUND, max(keep, 1) - 1, -1):
            if self._may_cut(text, place):
                if self._holds(text, place):
                    return place
                tried += 1
                if tried == _MOST_TRIED:
                    return None
        return None

    def encode(self, text: str, is_first: bool, split: int = 0) -> tuple[Ids, int, bool]:
        """Encode one stretch.

        Args:
            text: the stretch.
            is_first: whether the document begins with it.
            split: characters of it that belong to the source.

        Returns:
            The ids, how many leading ones lie wholly before the split, and whether one lies on both sides of it.
        """
        lead = "" if is_first else _LEAD
        encoded, counts, straddles = self._encoder.encode_with_seam([lead + text], [len(lead) + split if split else 0])
        if is_first:
            return encoded.ids, int(counts[0]), bool(straddles[0])
        skipped = len(self._lead)
        assert np.array_equal(encoded.ids[:skipped], self._lead), "nothing joins the lead"
        return encoded.ids[skipped:], max(0, int(counts[0]) - skipped), bool(straddles[0])

    def _holds(self, text: str, place: int) -> bool:
        left, right = text[max(0, place - _AROUND) : place], text[place : place + _AROUND]
        encoded = self._encoder.encode([_LEAD + left + right, _LEAD + left, _LEAD + right])
        whole, first, second = (
            encoded.ids[encoded.offsets[number] : encoded.offsets[number + 1]] for number in range(3)
        )
        skipped = len(self._lead)
        return np.array_equal(second[:skipped], self._lead) and np.array_equal(
            whole, np.concatenate([first, second[skipped:]])
        )


def _is_plain(model: PieceModel) -> bool:
    return (
        has_identity_normalizer(model)
        and not model.normalizer_spec.remove_extra_whitespaces
        and bool(model.normalizer_spec.escape_whitespaces)
        and bool(model.trainer_spec.byte_fallback)
    )


def _between_pieces(model: PieceModel) -> Callable[[str, int], bool]:
    """Tell cuts by the pairs of characters that stand side by side in some piece."""
    pieces = [entry.piece for entry in model.pieces if entry.type in (NORMAL, USER_DEFINED)]
    pairs = {piece[at : at + 2] for piece in pieces for at in range(len(piece) - 1)}

    def may_cut(text: str, place: int) -> bool:
        before, behind = (SPACE_MARK if character == " " else character for character in text[place - 1 : place + 1])
        return before + behind not in pairs and _LEAD + behind not in pairs

    return may_cut


def _behind_line_break(text: str, place: int) -> bool:
    return place >= 2 and text[place - 1] == "\n" and not text[place - 2].isspace() and not text[place].isspace()
