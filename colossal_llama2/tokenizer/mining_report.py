"""What mined pieces do: tokens per character before and after, by category, on text mined and on text held out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from colossal_llama2.tokenizer.mining import MinedPieces
from colossal_llama2.tokenizer.mining_corpus import Corpus, Document
from colossal_llama2.tokenizer.piece_model import PieceModel


@dataclass(frozen=True)
class Rate:
    """Counts of some documents: how many, their characters, and their tokens before and after."""

    documents: int
    characters: int
    before: int
    after: int

    def content(self) -> dict[str, float]:
        """Return the counts and what follows from them."""
        characters = max(self.characters, 1)
        return {
            "documents": self.documents,
            "characters": self.characters,
            "tokens_before": self.before,
            "tokens_after": self.after,
            "per_character_before": round(self.before / characters, 4),
            "per_character_after": round(self.after / characters, 4),
        }


@dataclass(frozen=True)
class Rates:
    """The rate of all documents, and of each category by name."""

    total: Rate
    categories: dict[str, Rate]

    def content(self) -> dict[str, Any]:
        """Return both as a report shows them."""
        return {
            "total": self.total.content(),
            "categories": {name: rate.content() for name, rate in self.categories.items()},
        }


def measure_categories(models: tuple[PieceModel, PieceModel], documents: Sequence[Document]) -> Rates:
    """Encode documents by SentencePiece under the model before and after, and count by category."""
    before, after = (_count(model, [document.text for document in documents]) for model in models)
    sums: dict[str, list[int]] = {}
    for document, *tokens in zip(documents, before, after, strict=True):
        row = sums.setdefault(document.category, [0, 0, 0, 0])
        for column, value in enumerate((1, len(document.text), *tokens)):
            row[column] += value
    total = [sum(column) for column in zip(*sums.values(), strict=True)] or [0, 0, 0, 0]
    return Rates(Rate(*total), {name: Rate(*row) for name, row in sorted(sums.items())})


@dataclass(frozen=True)
class MiningReport:
    """The account of a mining: what went in, what came out, what it does."""

    corpus: Corpus
    mined: MinedPieces
    cut: Counter[str]
    mined_rates: Rates
    held_out_rates: Rates

    @property
    def predicted(self) -> int:
        """Tokens of the text mined as mining foretold them."""
        return int(self.mined.tokens.sum())

    @property
    def measured(self) -> int:
        """The same as SentencePiece counts them."""
        return self.mined_rates.total.after

    def write(self, path: Path, num_wanted: int, settings: str) -> None:
        """Write the account as JSON."""
        content = {**self._content(num_wanted), "settings": settings.splitlines()}
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def lines(self, num_wanted: int) -> Iterator[str]:
        """Yield the account in a few lines for a person."""
        counts = self._counts(num_wanted)
        yield (
            f"pieces     {counts['found']} of {num_wanted}: {counts['characters']} single characters, "
            f"{counts['parts']} parts of others; {counts['pruned']} taken out again"
        )
        if self.cut:
            yield f"cut out    {', '.join(f'{count} {kind}' for kind, count in sorted(self.cut.items()))}"
        width = max(map(len, self.mined_rates.categories))
        yield f"{'tokens per character':<{width + 2}}  {'mined':^16}  {'held out':^16}"
        held_out = self.held_out_rates
        rows = [(name, rate, held_out.categories.get(name)) for name, rate in self.mined_rates.categories.items()]
        for name, mined, held in [*rows, ("", self.mined_rates.total, held_out.total)]:
            yield f"  {name:<{width}}  {_arrow(mined)}  {_arrow(held) if held and held.documents else ''}".rstrip()

    def _counts(self, num_wanted: int) -> dict[str, int]:
        pieces = self.mined.pieces
        return {
            "wanted": num_wanted,
            "found": len(pieces),
            "characters": sum(len(piece) == 1 for piece in pieces),
            "parts": sum(self.mined.is_part),
            "without_a_use_of_their_own": int((self.mined.counts.sum(axis=1) == 0).sum()),
            "pruned": len(self.mined.pruned),
            "last_score": int(self.mined.scores[-1]),
        }

    def _content(self, num_wanted: int) -> dict[str, Any]:
        return {
            "format_version": 1,
            "pieces": self._counts(num_wanted),
            "tokens": {"predicted": self.predicted, "sentencepiece": self.measured},
            "mined": self.mined_rates.content(),
            "held_out": self.held_out_rates.content(),
            "cut_out": dict(sorted(self.cut.items())),
            "refused_records": list(self.corpus.refused),
            "files": len(self.corpus.files),
            "ignored_files": [path.name for path in self.corpus.ignored],
        }


def _arrow(rate: Rate) -> str:
    content = rate.content()
    return f"{content['per_character_before']:.4f} -> {content['per_character_after']:.4f}"


def _count(model: PieceModel, texts: Sequence[str]) -> list[int]:
    processor = SentencePieceProcessor(model_proto=model.SerializeToString())
    return [len(ids) for ids in processor.encode(list(texts), out_type="numpy", num_threads=2)] if texts else []
