"""The account of an expansion: every line of the piece list and every new token, and what became of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.compression_rate import CompressionRate
from colossal_llama2.tokenizer.expander import LeftOut
from colossal_llama2.tokenizer.folder import EXPANSION_FILE
from colossal_llama2.tokenizer.old_text import Kept
from colossal_llama2.tokenizer.piece_list import RefusedPiece, SortedPieces
from colossal_llama2.tokenizer.piece_model import SPACE_MARK

FORMAT_VERSION: Final = 2
"""1 had no intermediate pieces: every new token was one of the list, and `unreachable` ones were among them."""
_SHOWN: Final = 8


@dataclass(frozen=True)
class SampleCounts:
    """A sample before and after; `longer` counts its texts that got more tokens."""

    before: CompressionRate
    after: CompressionRate
    longer: int


@dataclass(frozen=True)
class Expansion:
    """What an expansion did.

    Attributes:
        base_tokens: tokens of the source, its added tokens included.
        sorted_pieces: the list, sorted; what is new there was either added or left out.
        added: wanted pieces that were added, in order of id from `base_tokens`.
        intermediates: pieces that only serve to build them, in order of id behind them.
        left_out: new pieces of the list that were not added, by line.
        raised: added pieces that are merged earlier than the order says, so that longer ones can be built.
        merge_order: `length` or `list`, the order in which added pieces are merged.
        policy: the choices that decided this, by the names of the flags.
        source_fingerprint: fingerprint of the source tokenizer.
        target_fingerprint: fingerprint of the expanded one.
        texts_compared: texts on which all readers of the expanded tokenizer gave the same ids.
        kept: how old text fared, if some was to be kept identical.
        sample: token counts of the sample, if there was one.
    """

    base_tokens: int
    sorted_pieces: SortedPieces
    added: tuple[str, ...]
    intermediates: tuple[str, ...]
    left_out: tuple[RefusedPiece, ...]
    raised: tuple[str, ...]
    merge_order: str
    policy: dict[str, str]
    source_fingerprint: str
    target_fingerprint: str
    texts_compared: int
    kept: Kept | None = None
    sample: SampleCounts | None = None

    def __post_init__(self) -> None:
        """Hold the account to its sum: no piece of the list is lost."""
        assert len(self.added) + len(self.left_out) == len(self.sorted_pieces.new), "added or left out"

    @property
    def num_tokens(self) -> int:
        """Tokens of the expanded tokenizer."""
        return self.base_tokens + len(self.added) + len(self.intermediates)

    @property
    def ascii_only(self) -> list[str]:
        """Added pieces that hold nothing but ASCII, which almost any old text holds too."""
        return [piece for piece in self.added if piece.replace(SPACE_MARK, " ").isascii()]

    def write(self, path: Path) -> None:
        """Write the account as JSON: counts first, then every list in full."""
        path.write_text(json.dumps(self._content(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def lines(self) -> Iterator[str]:
        """Yield the account in a few lines for a person."""
        pieces = self.sorted_pieces
        yield f"tokens       {self.base_tokens} -> {self.num_tokens}"
        yield f"added        {len(self.added)}, merged in order of {self.merge_order}"
        yield f"in between   {len(self.intermediates)} pieces to build them{_shown(map(repr, self.intermediates))}"
        skipped = len(pieces.existing) + len(pieces.repeated)
        yield f"skipped      {skipped} ({len(pieces.existing)} existing, {len(pieces.repeated)} repeated)"
        yield f"refused      {len(pieces.refused)}{_shown(map(_with_reason, pieces.refused))}"
        yield f"left out     {len(self.left_out)}{_shown(map(_with_reason, self.left_out))}"
        yield f"same ids     by every reader on all of {self.texts_compared} texts tried"
        yield from self._old_text_lines()
        if self.sample:
            before, after = self.sample.before, self.sample.after
            yield (
                f"sample       {before.tokens_per_character:.4f} -> {after.tokens_per_character:.4f} tokens "
                f"per character, {before.tokens_per_byte:.4f} -> {after.tokens_per_byte:.4f} per byte; "
                f"{self.sample.longer} texts got more tokens"
            )

    def _old_text_lines(self) -> Iterator[str]:
        if self.kept is None:
            plain = self.ascii_only
            if plain:
                yield (
                    f"old text     changes wherever one of {len(plain)} added pieces of ASCII alone stands in it"
                    f"{_shown(map(repr, plain))}; --keep_identical FILE, text in the old language, leaves such out"
                )
            return
        old, changes = self.kept.old, self.kept.changes
        beyond = len(old.characters) - sum(character.isascii() for character in old.characters)
        yield (
            f"old text     {old.num_documents - changes.changed} of {old.num_documents} documents as before; "
            f"{changes.longer} got more tokens; letters of {', '.join(old.old_scripts)}"
        )
        if self.policy.get("on_change") == "allow":
            yield f"             {len(self.kept.changing)} pieces change it{_shown(map(_change, self.kept.changing))}"
        else:
            yield f"             by construction also any other text of ASCII and {beyond} more characters"
        if old.num_mixed:
            yield (
                f"             {old.num_mixed} documents hold letters of {', '.join(old.new_scripts)} too and were not "
                f"held to it: {changes.mixed_changed} changed"
            )

    def _content(self) -> dict[str, Any]:
        pieces = self.sorted_pieces
        counts = {
            "listed": sum(len(group) for group in (pieces.new, pieces.existing, pieces.repeated, pieces.refused)),
            "added": len(self.added),
            "existing": len(pieces.existing),
            "repeated": len(pieces.repeated),
            "refused": len(pieces.refused),
            "left_out": len(self.left_out),
            "intermediates": len(self.intermediates),
            "ascii_only": len(self.ascii_only),
        }
        return {
            "format_version": FORMAT_VERSION,
            "base_tokens": self.base_tokens,
            "num_tokens": self.num_tokens,
            "counts": counts,
            "policy": self.policy,
            "merge_order": self.merge_order,
            "old_text": _old_text(self.kept) if self.kept else None,
            "sample": _sample(self.sample) if self.sample else None,
            "texts_compared": self.texts_compared,
            "source_fingerprint": self.source_fingerprint,
            "target_fingerprint": self.target_fingerprint,
            "refused": [dataclasses.asdict(piece) for piece in pieces.refused],
            "left_out": [dataclasses.asdict(piece) for piece in self.left_out],
            "intermediates": list(self.intermediates),
            "raised": list(self.raised),
            "repeated": list(pieces.repeated),
            "existing": list(pieces.existing),
        }


def new_tokens(tokenizer_dir: Path) -> range:
    """Return the ids that an expansion added to a tokenizer; the same folder may hold a model.

    Raises:
        InputError: the folder holds no account of an expansion, or nothing was added.
    """
    path = tokenizer_dir / EXPANSION_FILE
    remedy = "expand the tokenizer with tools/init_tokenizer.py and the model with tools/init_model.py"
    if not path.is_file():
        raise InputError(f"has no new tokens (no {EXPANSION_FILE})", path=tokenizer_dir, remedy=remedy)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ids = range(int(content["base_tokens"]), int(content["num_tokens"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot be read ({error})", path=path, remedy=remedy) from None
    if not ids:
        raise InputError("the expansion added no token", path=path, remedy=remedy)
    return ids


def _old_text(kept: Kept) -> dict[str, Any]:
    old, changes = kept.old, kept.changes
    return {
        "documents": old.num_documents,
        "changed": changes.changed,
        "longer": changes.longer,
        "mixed_documents": old.num_mixed,
        "mixed_changed": changes.mixed_changed,
        "scripts": {name: round(share, 6) for name, share in old.scripts.items()},
        "new_scripts": list(old.new_scripts),
        "characters_beyond_ascii": "".join(sorted(letter for letter in old.characters if not letter.isascii())),
        "changing": [dataclasses.asdict(item) for item in kept.changing],
        "intermediates_done_without": list(kept.banned),
    }


def _sample(sample: SampleCounts) -> dict[str, Any]:
    return {"before": _rate(sample.before), "after": _rate(sample.after), "longer": sample.longer}


def _rate(rate: CompressionRate) -> dict[str, Any]:
    return {
        **dataclasses.asdict(rate),
        "tokens_per_character": round(rate.tokens_per_character, 6),
        "tokens_per_byte": round(rate.tokens_per_byte, 6),
    }


def _with_reason(piece: RefusedPiece) -> str:
    return f"line {piece.line} {_short(piece.piece)}: {piece.reason}"


def _change(item: LeftOut) -> str:
    return f"{_short(item.piece)}: {item.reason}"


def _short(piece: str) -> str:
    return repr(piece if len(piece) <= 20 else piece[:20] + "…")


def _shown(items: Iterable[str]) -> str:
    shown = list(islice(items, _SHOWN + 1))
    if not shown:
        return ""
    return f" ({'; '.join(shown[:_SHOWN])}{'; ...' if len(shown) > _SHOWN else ''})"
