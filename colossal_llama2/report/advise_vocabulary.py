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
from colossal_llama2.report.advice import Measured, advise, as_json, peer_table, table
from colossal_llama2.report.vocabulary_cost import ModelSize, model_size, vocabulary_cost
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
            "sizes": [as_json(entry, measured[0]) for entry in measured],
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
    for line in (*table(measured), *peer_table(peers), "", verdict):
        cli.say(line)


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


if __name__ == "__main__":
    cli.run(AdviceSettings, main)
