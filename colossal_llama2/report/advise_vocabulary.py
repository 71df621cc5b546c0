"""Command: what would so many new pieces save, and what would they cost?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import refuse_existing, whole_directory
from colossal_llama2.report.vocabulary_cost import ModelSize, VocabularyCost, model_size, vocabulary_cost
from colossal_llama2.report.vocabulary_plot import draw_advice
from colossal_llama2.tokenizer import init_tokenizer, mine_pieces
from colossal_llama2.tokenizer.compression_rate import CompressionRate
from colossal_llama2.tokenizer.documents import Documents
from colossal_llama2.tokenizer.encoder import Encoder
from colossal_llama2.tokenizer.expander import Attempt, Expander
from colossal_llama2.tokenizer.folder import MODEL_FILE, read_folder
from colossal_llama2.tokenizer.loading import load_encoder
from colossal_llama2.tokenizer.mining_corpus import read_corpus
from colossal_llama2.tokenizer.old_text import keep_old_text, read_old_text
from colossal_llama2.tokenizer.piece_list import WantedPiece, read_piece_list

WORTH: Final = 0.02
"""A larger vocabulary is advised only where it saves this share of the cost of training more."""
_HOLDOUT: Final = 0.1
_BATCH_CHARACTERS: Final = 1 << 21


@dataclass(frozen=True)
class AdviceSettings:
    """Measure what vocabularies of several sizes would save and cost, before anything is trained.

    Without --pieces they are mined from nine tenths of the corpus and measured on the other tenth.
    """

    corpus: tuple[Path, ...]
    """Text in the new language: folders or files, jsonl with source and target, or text."""

    source_tokenizer_dir: Path
    """Folder of the tokenizer that would be expanded."""

    output_dir: Path
    """Folder to write advice.json and advice.png to."""

    keep: tuple[Path, ...] = ()
    """Text in the old language, which is to keep its tokens; measured too."""

    pieces: Path | None = None
    """Piece list to take the first so many pieces of; a mined list, or any other with the most useful first."""

    sizes: str = "0,5000,10000,20000,40000"
    """How many new pieces to try, separated by commas."""

    model: Path | None = None
    """Model folder whose size the cost is reckoned with; Llama-2-7B's where none is named."""

    tokenizers: tuple[Path, ...] = ()
    """Further tokenizer folders to measure beside: vocabulary, tokens per character, tokens of an average document."""

    overwrite: bool = False
    """Replace the output folder if it exists."""


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


def main(settings: AdviceSettings) -> None:
    """Build every size, measure it, and write table, plot and verdict."""
    sizes = _sizes(settings)
    refuse_existing(settings.output_dir, settings.overwrite)
    size = model_size(settings.model)
    others = [load_encoder(path) for path in settings.tokenizers]
    expander = init_tokenizer.expander_of(read_folder(settings.source_tokenizer_dir))
    texts, wanted = _texts_and_pieces(settings, max(sizes))
    old = list(Documents(settings.keep)) if settings.keep else []
    measured = [_measure(expander, wanted, count, (texts, old), size) for count in sizes]
    peers = [_measure_peer(path, encoder, texts) for path, encoder in zip(settings.tokenizers, others, strict=True)]
    verdict = advise(measured)
    with whole_directory(settings.output_dir, settings.overwrite) as work:
        content = {
            "model": asdict(size),
            "measured_on": "held-out tenth of the corpus" if settings.pieces is None else "the corpus",
            "sizes": [_as_json(entry, measured[0]) for entry in measured],
            "tokenizers": peers,
            "verdict": verdict,
        }
        (work / "advice.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        draw_advice(
            [entry.num_tokens for entry in measured],
            {
                "tokens per character": [entry.new_text.tokens_per_character for entry in measured],
                "cost of training a megabyte": [e.cost.training / measured[0].cost.training for e in measured],
                "embedding and head, GB in bf16": [entry.cost.bytes / 1e9 for entry in measured],
            },
            work / "advice.png",
        )
        (work / "settings.yaml").write_text(cli.as_yaml(settings), encoding="utf-8")
    for line in (*table(measured), *_peer_table(peers), "", verdict):
        cli.say(line)


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


def _sizes(settings: AdviceSettings) -> list[int]:
    try:
        sizes = sorted({int(part) for part in settings.sizes.split(",") if part.strip()} | {0})
    except ValueError:
        raise InputError(f"--sizes {settings.sizes!r} is no list of numbers", remedy="write 0,5000,10000") from None
    if sizes[0] < 0 or len(sizes) < 2:
        raise InputError(f"--sizes {settings.sizes!r}", remedy="give a number above 0 at least, and none below")
    return sizes


def _texts_and_pieces(settings: AdviceSettings, most: int) -> tuple[list[str], list[WantedPiece]]:
    """Return the texts to measure on, and the pieces in the order in which they are taken."""
    if settings.pieces is not None:
        texts = list(Documents(settings.corpus))
        if not texts:
            raise InputError("holds no text", path=settings.corpus[0], remedy="give text in the new language")
        return texts, read_piece_list(settings.pieces)
    if read_folder(settings.source_tokenizer_dir).model_file is None:
        raise InputError(
            f"holds no {MODEL_FILE}, and pieces are mined for such tokenizers only",
            path=settings.source_tokenizer_dir,
            remedy="give a piece list with --pieces",
        )
    held_out = [document.text for document in read_corpus(settings.corpus, _HOLDOUT).held_out]
    if not held_out:
        raise InputError("is too small to hold a tenth out", path=settings.corpus[0], remedy="give more text")
    with tempfile.TemporaryDirectory() as folder:
        mined = Path(folder, "pieces.jsonl")
        mine_pieces.main(
            mine_pieces.MineSettings(
                corpus=settings.corpus,
                source_tokenizer_dir=settings.source_tokenizer_dir,
                num_pieces=most,
                output=mined,
                keep_identical=settings.keep,
                holdout=_HOLDOUT,
            )
        )
        return held_out, read_piece_list(mined)


def _measure(
    expander: Expander, wanted: Sequence[WantedPiece], count: int, texts: tuple[list[str], list[str]], size: ModelSize
) -> Measured:
    new_texts, old_texts = texts
    attempt = _expand(expander, wanted, count, old_texts) if count else None
    encoder = expander.before if attempt is None else attempt.encoder
    num_new = 0 if attempt is None else len(attempt.new_pieces)
    num_tokens = expander.num_base + num_new
    rate, used = _count(encoder, new_texts, expander.num_base, num_new)
    cost = vocabulary_cost(size, num_tokens, rate.tokens_per_byte)
    return Measured(
        wanted=count,
        added=0 if attempt is None else len(attempt.added),
        in_between=0 if attempt is None else len(attempt.intermediates),
        num_tokens=num_tokens,
        new_text=rate,
        old_text=_count(encoder, old_texts, 0, 0)[0] if old_texts else None,
        documents=len(new_texts),
        used=used,
        cost=cost,
    )


def _expand(expander: Expander, wanted: Sequence[WantedPiece], count: int, old_texts: list[str]) -> Attempt:
    """Expand by the first `count` new pieces of the list, as init_tokenizer would."""
    sorted_pieces = expander.sort(wanted)
    chosen = expander.sort([item for item in wanted if item.piece in set(sorted_pieces.new[:count])]).new
    if not chosen:
        raise InputError("the list holds no piece that could be added", remedy="give another --pieces")
    ordered, _ = expander.in_order(chosen, "auto")
    if not old_texts:
        return expander.build(ordered, "close", lambda text: True)
    old = read_old_text(old_texts, map(expander.as_text, ordered))
    kept = keep_old_text(
        ordered,
        expander.as_text,
        lambda pieces, allows: expander.build(pieces, "close", allows),
        expander.before,
        (old, old_texts),
        "drop",
    )
    return kept.attempt


def _count(encoder: Encoder, texts: Sequence[str], first_new: int, num_new: int) -> tuple[CompressionRate, float]:
    """Count tokens, characters and bytes, and the share of new tokens that occur; some million characters at once."""
    tokens = characters = num_bytes = 0
    seen = np.zeros(num_new, dtype=np.bool_)
    batch: list[str] = []
    held = 0
    for index, text in enumerate(texts):
        batch.append(text)
        held += len(text)
        if held < _BATCH_CHARACTERS and index + 1 < len(texts):
            continue
        ids = encoder.encode(batch).ids
        tokens += len(ids)
        seen[np.unique(ids[ids >= first_new] - first_new) if num_new else []] = True
        characters += held
        num_bytes += sum(len(text.encode()) for text in batch)
        batch, held = [], 0
    return CompressionRate(tokens, characters, num_bytes), float(seen.mean()) if num_new else 1.0


def _measure_peer(path: Path, encoder: Encoder, texts: Sequence[str]) -> dict[str, Any]:
    rate, _ = _count(encoder, texts, 0, 0)
    return {
        "name": path.name,
        "vocabulary": encoder.num_tokens,
        "tokens_per_character": round(rate.tokens_per_character, 6),
        "tokens_per_byte": round(rate.tokens_per_byte, 6),
        "tokens_per_document": round(rate.tokens / len(texts), 3),
    }


def _peer_table(peers: Sequence[dict[str, Any]]) -> list[str]:
    if not peers:
        return []
    lines = ["", "tokenizer             vocabulary  tokens/char  tokens/byte  tokens/document"]
    for peer in peers:
        lines.append(
            f"{peer['name'][:20]:20s}  {peer['vocabulary']:10d}  {peer['tokens_per_character']:11.4f}  "
            f"{peer['tokens_per_byte']:11.4f}  {peer['tokens_per_document']:15.1f}"
        )
    return lines


def _as_json(entry: Measured, base: Measured) -> dict[str, Any]:
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


if __name__ == "__main__":
    cli.run(AdviceSettings, main)
