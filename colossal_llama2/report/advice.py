"""The advice itself: what was measured of each size, as a table, as JSON, and as a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from colossal_llama2.report.vocabulary_cost import VocabularyCost
from colossal_llama2.tokenizer.compression_rate import CompressionRate

WORTH: Final = 0.02
"""A larger vocabulary is advised only where it saves this share of the cost of training more."""


@dataclass(frozen=True)
class Measured:
    """One vocabulary.

    Attributes:
        wanted: new pieces asked for.
        added: new pieces in it, those in between not among them.
        in_between: pieces that only serve to build others.
        num_tokens: size of the vocabulary.
        new_text: its tokens, characters and bytes.
        old_text: the same of the old language, if there is a sample.
        documents: documents of the new language.
        used: share of the new tokens that occur in the new text.
        cost: rows and arithmetic.
    """

    wanted: int
    added: int
    in_between: int
    num_tokens: int
    new_text: CompressionRate
    old_text: CompressionRate | None
    documents: int
    used: float
    cost: VocabularyCost


def advise(measured: Sequence[Measured]) -> str:
    """Say which size pays: the smallest whose training cost a larger one does not undercut by `WORTH` of today's."""
    base = measured[0].cost.training
    best = measured[0]
    for entry in measured[1:]:
        if (best.cost.training - entry.cost.training) / base >= WORTH:
            best = entry
    if best is measured[0]:
        return f"No size saves {WORTH:.0%} of the cost of training: leave the vocabulary as it is."
    saved = 1 - best.cost.training / base
    rows = best.cost.parameters - measured[0].cost.parameters
    verdict = (
        f"Take {best.wanted:,} pieces: training or generating this text costs {saved:.0%} less arithmetic a megabyte, "
        f"and embedding and head grow by {rows / 1e6:,.0f} million parameters ({2 * rows / 1e9:.2f} GB in bf16)."
    )
    larger = [entry for entry in measured if entry.wanted > best.wanted]
    if larger:
        further = (best.cost.training - larger[0].cost.training) / base
        verdict += f" The next size, {larger[0].wanted:,}, would save {further:.1%} more."
    if best.used < 0.9:
        verdict += f" Only {best.used:.0%} of its pieces occur in the text measured; more text would tell more."
    return verdict


def table(measured: Sequence[Measured]) -> list[str]:
    """Return the table, a line a size."""
    base = measured[0]
    head = (
        "pieces   added  between  vocabulary  tokens/char  tokens/byte  old text   used  rows+MB  train/MB  generate/MB"
    )
    lines = [head]
    for entry in measured:
        old = f"{entry.old_text.tokens_per_character:8.4f}" if entry.old_text else "       -"
        lines.append(
            f"{entry.wanted:6d}  {entry.added:6d}  {entry.in_between:7d}  {entry.num_tokens:10d}  "
            f"{entry.new_text.tokens_per_character:11.4f}  {entry.new_text.tokens_per_byte:11.4f}  {old}  "
            f"{entry.used:5.0%}  {(entry.cost.bytes - base.cost.bytes) / 1e6:7.0f}  "
            f"{entry.cost.training / base.cost.training:8.3f}  {entry.cost.generation / base.cost.generation:11.3f}"
        )
    return lines


def peer_table(peers: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of other tokenizers, a line each."""
    if not peers:
        return []
    lines = ["", "tokenizer             vocabulary  tokens/char  tokens/byte  tokens/document"]
    for peer in peers:
        lines.append(
            f"{peer['name'][:20]:20s}  {peer['vocabulary']:10d}  {peer['tokens_per_character']:11.4f}  "
            f"{peer['tokens_per_byte']:11.4f}  {peer['tokens_per_document']:15.1f}"
        )
    return lines


def as_json(entry: Measured, base: Measured) -> dict[str, Any]:
    """Return what is written of one size."""
    content = asdict(entry)
    for name in ("new_text", "old_text"):
        rate = getattr(entry, name)
        if rate is not None:
            content[name] |= {
                "tokens_per_character": round(rate.tokens_per_character, 6),
                "tokens_per_byte": round(rate.tokens_per_byte, 6),
            }
    content["tokens_per_document"] = round(entry.new_text.tokens / entry.documents, 3)
    content["training_over_base"] = round(entry.cost.training / base.cost.training, 6)
    content["parameters_added"] = entry.cost.parameters - base.cost.parameters
    return content
