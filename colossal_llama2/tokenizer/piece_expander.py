"""Expands a SentencePiece BPE tokenizer: closed merges, scores below the base's, our own fast tokenizer beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer import loading, parity
from colossal_llama2.tokenizer.closing import Closed, close_merges
from colossal_llama2.tokenizer.encoder import PieceEncoder, Vocabulary
from colossal_llama2.tokenizer.expand import expand_model
from colossal_llama2.tokenizer.expander import Attempt, Expander, LeftOut, MergeOrder, UnreachablePolicy
from colossal_llama2.tokenizer.folder import JSON_FILE, MODEL_FILE, TokenizerFolder, read_folder
from colossal_llama2.tokenizer.merges import Merges
from colossal_llama2.tokenizer.piece_list import SortedPieces, WantedPiece, sort_pieces
from colossal_llama2.tokenizer.piece_model import (
    NORMAL,
    USER_DEFINED,
    PieceModel,
    as_text,
    halves,
    parse_piece_model,
    require_bpe,
)
from colossal_llama2.tokenizer.reachability import unreachable_pieces
from colossal_llama2.tokenizer.writing import write_tokenizer


class PieceExpander(Expander):
    """Expands the SentencePiece BPE tokenizer of one folder."""

    def __init__(self, source: TokenizerFolder) -> None:
        """Read the source.

        Raises:
            InputError: its model is not BPE, or its added tokens leave no room behind the pieces.
        """
        self._source = source
        self._model = loading.read_model(source)
        require_bpe(self._model, source.path)
        self._beyond = loading.tokens_beyond(source, self._model)
        self._refuse_gaps()
        self._merges = Merges(self._model)
        self._num_threads = len(os.sched_getaffinity(0))
        self.num_base = len(self._model.pieces) + len(self._beyond)
        self.before = loading.load_encoder(source.path, self._num_threads)

    def sort(self, wanted: Sequence[WantedPiece]) -> SortedPieces:
        """Hold the list against the source: new, existing, repeated, refused with a reason."""
        return sort_pieces(wanted, self._model, self._source.markers | {token.content for token in self._beyond})

    def as_text(self, piece: str) -> str:
        """Return the text a piece stands for: the space mark is a space."""
        return as_text(piece)

    def in_order(self, pieces: Sequence[str], order: MergeOrder) -> tuple[list[str], Literal["length", "list"]]:
        """Return new pieces in the order in which they are to be merged, and the name of that order.

        By length, list order among equals, of two overlapping pieces the shorter, commoner one is merged first. The
        order of the list is right for a list that was made by merging, where every piece can be joined from two that
        stand before it; `auto` takes it exactly then.
        """
        if order == "list" or (order == "auto" and self._is_merge_list(pieces)):
            return list(pieces), "list"
        return sorted(pieces, key=len), "length"

    def build(self, pieces: Sequence[str], policy: UnreachablePolicy, allows: Callable[[str], bool]) -> Attempt:
        """Add the pieces, given in the order of their merges; see `Expander.build`."""
        overruled: dict[str, LeftOut] = {}
        while True:
            kept = [piece for piece in pieces if piece not in overruled]
            closed = close_merges(
                self._merges, kept, policy, lambda piece: bool(as_text(piece).strip()) and allows(as_text(piece))
            )
            model = self._expand(closed)
            refuted = unreachable_pieces(model, range(self.num_base, self.num_base + len(closed.wanted)))
            if not refuted:
                break
            for item in refuted:
                overruled[item.piece] = LeftOut(
                    item.piece, f"{item.reason}; its text gives {' '.join(item.encoded_as)}"
                )
        return Attempt(
            encoder=_encoder_of(model.SerializeToString(), self._num_threads),
            added=closed.wanted,
            intermediates=closed.intermediates,
            left_out=(*closed.left_out, *overruled.values()),
            raised=closed.raised,
            result=model,
        )

    def write(self, attempt: Attempt, target: Path) -> int:
        """Fill an empty folder with the expanded tokenizer, and prove that its readers agree; see `Expander.write`."""
        source, model = self._source, attempt.result
        named = loading.special_tokens(source, self._model)
        write_tokenizer(target, source, model, loading.build_fast(source, model), named)
        return _prove_parity(target, range(self.num_base, len(model.pieces)))

    def _expand(self, closed: Closed) -> PieceModel:
        return expand_model(
            self._model, [*closed.wanted, *closed.intermediates], self._beyond, merge_order=closed.merge_order
        )

    def _is_merge_list(self, pieces: Sequence[str]) -> bool:
        known = {entry.piece for entry in self._model.pieces if entry.type in (NORMAL, USER_DEFINED)}
        for piece in pieces:
            if len(piece) > 1 and not any(left in known and right in known for left, right in halves(piece)):
                return False
            known.add(piece)
        return True

    def _refuse_gaps(self) -> None:
        """New pieces come after the source's added tokens, which must follow the model's pieces without a hole."""
        known = {entry.piece for entry in self._model.pieces}
        for expected, token in enumerate(self._beyond, len(self._model.pieces)):
            if token.id != expected or token.content in known:
                raise InputError(
                    f"the added token {token.content!r} has id {token.id}, where {expected} or a piece of its own "
                    "would be",
                    path=self._source.path,
                    remedy="number the added tokens behind the pieces without a gap or a repetition",
                )


def _encoder_of(raw: bytes, num_threads: int) -> PieceEncoder:
    model = parse_piece_model(raw)
    vocabulary = Vocabulary(len(model.pieces), None, None, None, fingerprint="")
    return PieceEncoder(model, vocabulary, num_threads, (_encoder_of, (raw, num_threads)))


def _prove_parity(folder: Path, new_ids: Sequence[int]) -> int:
    """Hold what was written against SentencePiece, as `tokenizers` and as transformers read it.

    Returns the number of texts compared.

    Raises:
        InputError: they differ on a text, which is quoted.
    """
    written = read_folder(folder)
    model = loading.read_model(written)
    processor = SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
    texts = parity.adversarial_texts(model, new_ids)
    fast = Tokenizer.from_file(str(folder / JSON_FILE))
    mismatches, compared = parity.find_mismatches(processor, fast, texts)
    around = [written.special_tokens.get(f"{name}_token") if written.adds(name) else None for name in ("bos", "eos")]
    before, after = ([] if token is None else [int(fast.token_to_id(token) or 0)] for token in around)
    mismatches += parity.find_transformers_mismatches(processor, folder, before, after)
    if mismatches:
        first = mismatches[0]
        raise InputError(
            f"the fast tokenizer of this expansion gives {list(first.actual)[:20]} for {first.text[:60]!r}, "
            f"SentencePiece {list(first.expected)[:20]}",
            remedy="take the pieces of that text out of the list, or start from another base",
        )
    return compared
