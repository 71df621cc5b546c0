"""The account of an expansion: every line of the piece list, and what became of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.compression_rate import CompressionRate
from colossal_llama2.tokenizer.folder import EXPANSION_FILE
from colossal_llama2.tokenizer.piece_list import SortedPieces
from colossal_llama2.tokenizer.reachability import UnreachablePiece

FORMAT_VERSION: Final = 1
_SHOWN: Final = 8


@dataclass(frozen=True)
class Expansion:
    """What an expansion did.

    Attributes:
        base_tokens: tokens of the source, its added tokens included.
        sorted_pieces: the list, sorted.
        unreachable: added pieces that never come out of their own text.
        source_fingerprint: fingerprint of the source tokenizer.
        target_fingerprint: fingerprint of the expanded one.
        texts_compared: texts on which the fast tokenizer gave SentencePiece's ids.
        before: token counts of the sample under the source, if there was a sample.
        after: the same under the expanded tokenizer.
    """

    base_tokens: int
    sorted_pieces: SortedPieces
    unreachable: tuple[UnreachablePiece, ...]
    source_fingerprint: str
    target_fingerprint: str
    texts_compared: int
    before: CompressionRate | None = None
    after: CompressionRate | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the expanded tokenizer."""
        return self.base_tokens + len(self.sorted_pieces.new)

    def write(self, path: Path) -> None:
        """Write the account as JSON: counts first, then every list in full."""
        path.write_text(json.dumps(self._content(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def lines(self) -> Iterator[str]:
        """Yield the account in a few lines for a person."""
        pieces = self.sorted_pieces
        yield f"tokens       {self.base_tokens} -> {self.num_tokens}"
        yield f"added        {len(pieces.new)}"
        skipped = len(pieces.existing) + len(pieces.repeated)
        yield f"skipped      {skipped} ({len(pieces.existing)} existing, {len(pieces.repeated)} repeated)"
        yield f"refused      {len(pieces.refused)}{_shown([_refusal(piece) for piece in pieces.refused])}"
        yield f"unreachable  {len(self.unreachable)}{_shown([repr(item.piece) for item in self.unreachable])}"
        yield f"fast = slow  on all of {self.texts_compared} texts tried"
        if self.before and self.after:
            yield (
                f"sample       {self.before.tokens_per_character:.4f} -> {self.after.tokens_per_character:.4f} tokens "
                f"per character, {self.before.tokens_per_byte:.4f} -> {self.after.tokens_per_byte:.4f} per byte"
            )

    def _content(self) -> dict[str, Any]:
        pieces = self.sorted_pieces
        counts = {
            "listed": sum(len(group) for group in (pieces.new, pieces.existing, pieces.repeated, pieces.refused)),
            "added": len(pieces.new),
            "existing": len(pieces.existing),
            "repeated": len(pieces.repeated),
            "refused": len(pieces.refused),
            "unreachable": len(self.unreachable),
        }
        return {
            "format_version": FORMAT_VERSION,
            "base_tokens": self.base_tokens,
            "num_tokens": self.num_tokens,
            "counts": counts,
            "sample": {"before": _rate(self.before), "after": _rate(self.after)} if self.before else None,
            "texts_compared": self.texts_compared,
            "source_fingerprint": self.source_fingerprint,
            "target_fingerprint": self.target_fingerprint,
            "refused": [dataclasses.asdict(piece) for piece in pieces.refused],
            "unreachable": [dataclasses.asdict(piece) for piece in self.unreachable],
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


def _refusal(piece: Any) -> str:
    shown = piece.piece if len(piece.piece) <= 20 else piece.piece[:20] + "…"
    return f"line {piece.line} {shown!r}: {piece.reason}"


def _shown(items: Sequence[str]) -> str:
    if not items:
        return ""
    return f" ({'; '.join(items[:_SHOWN])}{'; ...' if len(items) > _SHOWN else ''})"


def _rate(rate: CompressionRate | None) -> dict[str, Any] | None:
    if rate is None:
        return None
    return {
        **dataclasses.asdict(rate),
        "tokens_per_character": round(rate.tokens_per_character, 6),
        "tokens_per_byte": round(rate.tokens_per_byte, 6),
    }
