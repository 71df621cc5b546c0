"""What the expansion of one kind of tokenizer must offer, so that one command serves every kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from colossal_llama2.tokenizer.encoder import Encoder
from colossal_llama2.tokenizer.piece_list import SortedPieces, WantedPiece

UnreachablePolicy = Literal["close", "drop", "error"]
MergeOrder = Literal["auto", "length", "list"]


@dataclass(frozen=True)
class LeftOut:
    """A wanted piece that is not added, and why."""

    piece: str
    reason: str


@dataclass(frozen=True)
class Attempt:
    """An expansion that is built and not yet written; every piece in it comes out of its own text as one token.

    Attributes:
        encoder: encodes plain text with it.
        added: the wanted pieces in it, in order of id, the first behind the tokens of the base.
        intermediates: pieces that only serve to build wanted ones, in order of id behind those.
        left_out: wanted pieces that cannot be made to come out of a text.
        raised: pieces that were given an earlier place among the merges, so that a longer one can be built.
        result: what the expander itself needs to write it.
    """

    encoder: Encoder
    added: tuple[str, ...]
    intermediates: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    raised: tuple[str, ...]
    result: Any

    @property
    def new_pieces(self) -> tuple[str, ...]:
        """Every new piece, in order of id."""
        return self.added + self.intermediates


class Expander(ABC):
    """Expands the tokenizer of one folder.

    Attributes:
        num_base: tokens of the source, its added tokens included; the first new piece gets this id.
        before: the source's own encoder.
    """

    num_base: int
    before: Encoder

    @abstractmethod
    def sort(self, wanted: Sequence[WantedPiece]) -> SortedPieces:
        """Hold the list against the source: new, existing, repeated, refused with a reason."""

    @abstractmethod
    def as_text(self, piece: str) -> str:
        """Return the text a piece stands for; no two pieces stand for the same."""

    @abstractmethod
    def in_order(self, pieces: Sequence[str], order: MergeOrder) -> tuple[list[str], Literal["length", "list"]]:
        """Return new pieces in the order in which they are to be merged, and the name of that order."""

    @abstractmethod
    def build(self, pieces: Sequence[str], policy: UnreachablePolicy, allows: Callable[[str], bool]) -> Attempt:
        """Add the pieces, given in the order of their merges.

        Args:
            pieces: the wanted pieces.
            policy: `close` adds the intermediates that are needed; with `drop` and `error` there are none, and what
                cannot be built is left out (the caller makes the error of it).
            allows: says of a text whether an intermediate piece may stand for it.
        """

    @abstractmethod
    def write(self, attempt: Attempt, target: Path) -> int:
        """Fill an empty folder with the expanded tokenizer, prove all its readers agree, return on how many texts.

        Raises:
            InputError: they differ on a text, which is quoted.
        """
