"""Expands a byte-level BPE tokenizer (GPT-2, Llama-3, Qwen): tokens and merges behind all it has, closed, proved."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from colossal_llama2 import cli
from colossal_llama2.tokenizer import loading
from colossal_llama2.tokenizer.byte_level_closing import ClosedMerges, Rule, close_merges, merge_parts
from colossal_llama2.tokenizer.byte_level_model import add_named_tokens, cut_by_merges, read_byte_level, to_letters
from colossal_llama2.tokenizer.byte_level_pieces import sort_byte_level
from colossal_llama2.tokenizer.byte_level_proof import prove_expansion
from colossal_llama2.tokenizer.byte_level_tokens import name_of, text_of
from colossal_llama2.tokenizer.byte_level_writing import expanded_content, to_tokenizer, write_byte_level
from colossal_llama2.tokenizer.encoder import Vocabulary, set_parallelism
from colossal_llama2.tokenizer.expander import Attempt, Expander, LeftOut, MergeOrder, UnreachablePolicy
from colossal_llama2.tokenizer.folder import JSON_FILE, TokenizerFolder
from colossal_llama2.tokenizer.piece_list import SortedPieces, WantedPiece
from colossal_llama2.tokenizer.piece_model import as_text, halves
from colossal_llama2.tokenizer.reference_encoders import FastEncoder


class ByteLevelExpander(Expander):
    """Expands the byte-level BPE tokenizer of one folder."""

    def __init__(self, source: TokenizerFolder) -> None:
        """Read the source.

        Raises:
            InputError: it is no byte-level BPE, or its ids have gaps.
        """
        self._source = source
        self._model = read_byte_level(add_named_tokens(loading.read_fast(source), source), source.path)
        self._cuts: dict[str, tuple[str, ...]] = {}
        self._torn: dict[str, str] = {}
        self.num_base = self._model.num_tokens
        set_parallelism(len(os.sched_getaffinity(0)))
        self.before = _encoder_of(self._model.content)

    def sort(self, wanted: Sequence[WantedPiece]) -> SortedPieces:
        """Hold the list against the source: new, existing, repeated, refused with a reason."""
        return sort_byte_level(wanted, self._model, self._source.markers)

    def as_text(self, piece: str) -> str:
        """Return the text a piece stands for; of one that is torn out of characters, its bytes as lone surrogates."""
        return self._torn.get(piece) or as_text(piece)

    def in_order(self, pieces: Sequence[str], order: MergeOrder) -> tuple[list[str], Literal["length", "list"]]:
        """Return new pieces in the order in which they are to be merged, and the name of that order.

        As for SentencePiece: by length, unless the list was made by merging. Single characters prove nothing there,
        their bytes may need a token in between that no list can name.
        """
        if order == "list" or (order == "auto" and self._is_merge_list(pieces)):
            return list(pieces), "list"
        return sorted(pieces, key=len), "length"

    def build(self, pieces: Sequence[str], policy: UnreachablePolicy, allows: Callable[[str], bool]) -> Attempt:
        """Add the pieces, given in the order of their merges; see `Expander.build`."""
        names = {to_letters(as_text(piece)): piece for piece in pieces}
        cuts = self._cut(list(names))
        closed = close_merges(cuts, self._model.vocab, Rule(policy == "close", allows))
        between = tuple(name_of(token) for token in closed.between)
        self._torn |= {name: text_of(token) for name, token in zip(between, closed.between, strict=True)}
        return Attempt(
            encoder=_encoder_of(expanded_content(self._model, closed)),
            added=tuple(names[token] for token in closed.reached),
            intermediates=between,
            left_out=_left_out(closed, cuts, names),
            raised=(),
            result=closed,
        )

    def write(self, attempt: Attempt, target: Path) -> int:
        """Fill an empty folder with the expanded tokenizer, and prove it; see `Expander.write`."""
        closed: ClosedMerges = attempt.result
        older = write_byte_level(target, self._source, expanded_content(self._model, closed))
        if older:
            cli.say(f"not written  {', '.join(older)}; {JSON_FILE} holds the same")
        texts = [as_text(piece) for piece in attempt.added]
        return prove_expansion(self._model, closed, texts, self._source.path, target)

    def _cut(self, tokens: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Cut tokens by the base's merges; of those asked for before, the cut is known."""
        asked = [token for token in tokens if token not in self._cuts]
        self._cuts.update(zip(asked, cut_by_merges(self._model.content, asked), strict=True))
        return {token: self._cuts[token] for token in tokens}

    def _is_merge_list(self, pieces: Sequence[str]) -> bool:
        known = set(self._model.vocab)
        for piece in pieces:
            token = to_letters(as_text(piece))
            if len(piece) > 1 and not any(left in known and right in known for left, right in halves(token)):
                return False
            known.add(token)
        return True


def _left_out(closed: ClosedMerges, cuts: Mapping[str, Sequence[str]], names: Mapping[str, str]) -> tuple[LeftOut, ...]:
    ranks = {merge: rank for rank, merge in enumerate(closed.merges)}
    return tuple(
        LeftOut(names[token], f"{reason}; its text gives {' '.join(map(name_of, merge_parts(cuts[token], ranks)))}")
        for token, reason in closed.left_out.items()
    )


def _encoder_of(content: dict[str, Any]) -> FastEncoder:
    tokenizer = to_tokenizer(content)
    vocabulary = Vocabulary(tokenizer.get_vocab_size(), None, None, None, fingerprint="")
    return FastEncoder(tokenizer, vocabulary, (_encoder_of, (content,)))
