"""`tools/inspect_dataset.py`: look at a prepared corpus: a row in colour, the ledger as tables, a picture."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from colossal_llama2 import cli
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.inspect_report import draw_report, measure_shape
from colossal_llama2.dataset.ledger import MANIFEST
from colossal_llama2.dataset.parts import IGNORED, Row
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import refuse_folder
from colossal_llama2.tokenizer.loading import load_tokenizer, tokenizer_fingerprint

_LEARNED, _SEEN, _BOUNDARY, _PLAIN = "\x1b[32m", "\x1b[90m", "\x1b[1;35m", "\x1b[0m"


@dataclass(frozen=True)
class InspectSettings:
    """Look at a prepared corpus: one row as text, the ledger as tables, or a picture."""

    dataset: Path
    """The corpus, a part of it, or its holdout."""

    row: int | None = None
    """Number of the row to print, from 0, buckets counted through in order."""

    tokenizer_dir: Path | None = None
    """Tokenizer the corpus was encoded with; needed to print a row as text, without it ids are printed."""

    summary: bool = False
    """Print the ledger's totals, categories and buckets."""

    report: Path | None = None
    """Draw lengths of documents, fill of rows and categories per bucket to this PNG file."""

    colour: bool | None = None
    """Learned tokens green, the others grey; by default on a terminal. Without, learned tokens stand in [ ]."""


def main(settings: InspectSettings) -> None:
    """Print what was asked for."""
    corpus = PreparedCorpus.open([settings.dataset])
    if settings.row is None and not settings.summary and settings.report is None:
        raise InputError("nothing to look at", remedy="pass --row N, --summary or --report FILE.png")
    if settings.report is not None:
        refuse_folder(settings.report)
    if settings.summary:
        for line in summary_lines(_read_ledger(settings.dataset)):
            cli.say(line)
    if settings.row is not None:
        if not 0 <= settings.row < corpus.num_rows:
            raise InputError(
                f"has no row {settings.row}", path=settings.dataset, remedy=f"give 0 to {corpus.num_rows - 1}"
            )
        pieces = _pieces(settings, corpus)
        colour = settings.colour if settings.colour is not None else _takes_colour()
        cli.say(f"{corpus.describe_row(settings.row)}")
        for line in row_lines(corpus.row(settings.row), pieces, colour):
            cli.say(line)
    if settings.report is not None:
        _draw(settings.dataset, corpus, settings.report)


def row_lines(row: Row, pieces: Sequence[str] | None, colour: bool) -> Iterator[str]:
    """Yield a row's pieces of documents, each behind a line that marks its boundary.

    Args:
        row: the row.
        pieces: text of every token id; None prints the ids.
        colour: learned tokens green, the others grey; else learned ones stand in brackets.
    """
    begin = 0
    for number, length in enumerate(row.seq_lens.tolist()):
        end = begin + length
        labels = row.labels[begin:end]
        learned = int((labels != IGNORED).sum())
        head = f"── piece {number}: {length} tokens, {learned} learned "
        yield f"{_BOUNDARY}{head}{_PLAIN}" if colour else head
        yield "".join(_spans(row.input_ids[begin:end], labels, pieces, colour))
        begin = end


def _spans(ids: Any, labels: Any, pieces: Sequence[str] | None, colour: bool) -> Iterator[str]:
    """Yield runs of tokens that are all learned or all not."""
    is_learned = labels != IGNORED
    bounds = [0, *(np.flatnonzero(np.diff(is_learned)) + 1).tolist(), len(ids)]
    for first, last in pairwise(bounds):
        if first == last:
            continue
        shown = [str(index) if pieces is None else pieces[index] for index in ids[first:last].tolist()]
        text = (" " if pieces is None else "").join(shown)
        if colour:
            yield f"{_LEARNED if is_learned[first] else _SEEN}{text}{_PLAIN}"
        else:
            yield f"[{text}]" if is_learned[first] else text


def summary_lines(ledger: dict[str, Any]) -> Iterator[str]:
    """Yield the ledger's totals, and its categories and buckets as tables."""
    totals = ledger.get("totals", {})
    for name, value in totals.items():
        if isinstance(value, dict):
            value = ", ".join(f"{count:,} {what}" for what, count in value.items())
            if not any(character in "123456789" for character in value):
                continue
        yield f"{name:20s}  {value:,}" if isinstance(value, int) else f"{name:20s}  {value}"
    if ledger.get("categories"):
        yield ""
        yield f"{'category':24s} {'documents':>10s} {'tokens':>14s} {'learned':>14s} {'cut':>8s} {'over buckets':>13s}"
        for name, entry in ledger["categories"].items():
            parts = entry["tokens_per_bucket"]
            spread = f"{min(parts) / max(parts):.3f}" if parts and max(parts) else "-"
            yield (
                f"{name[:24]:24s} {entry['documents']:10,d} {entry['tokens']:14,d} {entry['learned_tokens']:14,d} "
                f"{entry['documents_cut']:8,d} {spread:>13s}"
            )
    if ledger.get("buckets"):
        yield ""
        yield f"{'bucket':>6s} {'rows':>8s} {'tokens':>14s} {'learned':>14s} {'documents':>10s} {'fill':>8s}"
        for bucket in ledger["buckets"]:
            fill = f"{bucket['fill']:.2%}" if "fill" in bucket else "-"
            yield (
                f"{bucket['bucket']:6d} {bucket['rows']:8,d} {bucket['tokens']:14,d} {bucket['learned_tokens']:14,d} "
                f"{bucket.get('documents', 0):10,d} {fill:>8s}"
            )


def _read_ledger(folder: Path) -> dict[str, Any]:
    home = folder if (folder / MANIFEST).is_file() else folder.absolute().parent
    ledger: dict[str, Any] = json.loads((home / MANIFEST).read_text(encoding="utf-8"))
    return ledger


def _draw(dataset: Path, corpus: PreparedCorpus, path: Path) -> None:
    ledger = _read_ledger(dataset)
    tokenizer = ledger["tokenizer"]
    shape = measure_shape(corpus, tokenizer["bos_token_id"], tokenizer["eos_token_id"])
    categories = ledger.get("categories", {})
    is_one_part = not (dataset / MANIFEST).is_file()
    draw_report(shape, {} if is_one_part else {k: v["tokens_per_bucket"] for k, v in categories.items()}, path)
    cli.say(f"{path}: {corpus.num_rows:,} rows drawn")
    if is_one_part or not categories:
        why = "this is one bucket" if is_one_part else "its ledger has no categories"
        cli.say(f"categories per bucket are left out: {why}")


def _pieces(settings: InspectSettings, corpus: PreparedCorpus) -> list[str] | None:
    """Return the text of every token, line breaks and tabs made visible."""
    if settings.tokenizer_dir is None:
        return None
    if tokenizer_fingerprint(settings.tokenizer_dir) != corpus.tokenizer_fingerprint:
        raise InputError(
            "is not the tokenizer that the corpus was encoded with",
            path=settings.tokenizer_dir,
            remedy="give that one, or leave --tokenizer_dir out to see ids",
        )
    tokenizer = load_tokenizer(settings.tokenizer_dir)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return [str(token).replace("▁", " ").replace("<0x0A>", "⏎\n").replace("\n", "⏎\n") for token in tokens]


def _takes_colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


if __name__ == "__main__":
    cli.run(InspectSettings, main)
