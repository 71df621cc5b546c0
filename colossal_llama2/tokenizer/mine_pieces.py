"""Command: find the pieces a corpus needs by continuing the tokenizer's own byte-pair encoding on it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import refuse_existing, refuse_folder, whole_file
from colossal_llama2.tokenizer import loading
from colossal_llama2.tokenizer.expand import expand_model
from colossal_llama2.tokenizer.folder import JSON_FILE, MODEL_FILE, read_folder
from colossal_llama2.tokenizer.mining import MinedPieces, mine_pieces
from colossal_llama2.tokenizer.mining_corpus import (
    BadRecords,
    Corpus,
    category_weights,
    cut_personal_data,
    parse_weights,
    read_corpus,
)
from colossal_llama2.tokenizer.mining_report import MiningReport, measure_categories
from colossal_llama2.tokenizer.mining_rules import Allowed, CharacterKinds, find_old_characters, make_rules
from colossal_llama2.tokenizer.piece_model import PieceModel, require_bpe


@dataclass(frozen=True)
class MineSettings:
    """Find the pieces that save most tokens on a corpus, for tools/init_tokenizer.py to add.

    The tokenizer's own byte-pair encoding is continued on the corpus, so every piece can be produced, and the list's
    order is the order of its merges. A .report.json beside the list says what it does, also to documents not mined.
    """

    corpus: tuple[Path, ...]
    """Text to mine: folders or files, jsonl with source and target, or text, and perhaps category; .txt line
    by line."""

    source_tokenizer_dir: Path
    """Folder of the tokenizer that is to be expanded."""

    num_pieces: int
    """How many new pieces to find at most."""

    output: Path
    """File to write the pieces to: jsonl, the first to be merged first."""

    keep_identical: tuple[Path, ...] = ()
    """Text in the old language (as --corpus): no piece consists only of characters that are usual there. ASCII, Latin-1
    and general punctuation are always old."""

    min_count: int = 10
    """Fewest uses of a piece in the text mined."""

    min_documents: int = 2
    """Fewest documents that use a piece."""

    max_piece_length: int | None = None
    """Most characters of a piece; by default as many as in the base's own training."""

    balance: float = 0.0
    """0 counts every use alike; 1 lets every category have the same say, however large it is; between them in
    between."""

    category_weights: str = ""
    """Further weights, name=number separated by commas; a category that is not named has 1."""

    holdout: float = 0.1
    """Share of the documents, chosen by the hash of their text, that are not mined but measured on."""

    allowed: Allowed = field(default_factory=Allowed)
    """Rules lifted."""

    bad_records: BadRecords = "error"
    """What to do with a line that is not a record: stop and name it, or pass it over and list it in the report."""

    overwrite: bool = False
    """Replace the output if it exists."""


def main(settings: MineSettings) -> None:
    """Read the corpus, mine it, measure the pieces on documents not mined, and write list and report."""
    _check(settings)
    refuse_folder(settings.output)
    report_file = settings.output.with_suffix(".report.json")
    for target in (settings.output, report_file):
        refuse_folder(target)
        refuse_existing(target, settings.overwrite)
    model = _read_model(settings.source_tokenizer_dir)
    corpus = read_corpus(settings.corpus, settings.holdout, settings.bad_records)
    _refuse_input(settings.output, corpus)
    weights = category_weights(corpus.mined, settings.balance, parse_weights(settings.category_weights))
    cut: Counter[str] = Counter()
    texts = [document.text for document in corpus.mined]
    if not settings.allowed.allow_personal_data:
        texts = [cut_personal_data(text, cut) for text in texts]
    kinds = CharacterKinds(find_old_characters(_read_sample(settings.keep_identical), texts))
    fewest = (settings.min_count, settings.min_documents)
    rules = make_rules(model, settings.allowed, settings.max_piece_length, fewest)
    labels = [document.category for document in corpus.mined]
    mined = mine_pieces(model, (texts, labels), weights, rules, kinds, settings.num_pieces)
    if not mined.pieces:
        raise InputError(
            "holds nothing that could become a piece",
            path=settings.corpus[0],
            remedy="give more text, a lower --min_count, or lift a rule",
        )
    report = _measure(model, corpus, texts, mined, cut)
    with whole_file(report_file, settings.overwrite) as work:
        report.write(work, settings.num_pieces, cli.as_yaml(settings))
    with whole_file(settings.output, settings.overwrite) as work:
        work.write_text("".join(f"{line}\n" for line in piece_lines(mined)), encoding="utf-8")
    for line in report.lines(settings.num_pieces):
        cli.say(line)
    _warn(report, settings)


def piece_lines(mined: MinedPieces) -> list[str]:
    """Return the lines of the list: piece, uses, tokens saved, uses by category."""
    lines = []
    for piece, counts, saved in zip(mined.pieces, mined.counts.tolist(), mined.saved.tolist(), strict=True):
        by_category = {name: count for name, count in zip(mined.categories, counts, strict=True) if count}
        record = {"piece": piece, "count": sum(counts), "saved": saved, "categories": by_category}
        lines.append(json.dumps(record, ensure_ascii=False))
    return lines


def _check(settings: MineSettings) -> None:
    for name, least in (("num_pieces", 1), ("min_count", 1), ("min_documents", 1), ("max_piece_length", 2)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise InputError(f"--{name} is {value}", remedy=f"give {least} or more")
    if not 0 <= settings.holdout < 1:
        raise InputError(f"--holdout is {settings.holdout:g}", remedy="give a share from 0 to less than 1")
    if not 0 <= settings.balance <= 1:
        raise InputError(f"--balance is {settings.balance:g}", remedy="give a number from 0 to 1")


def _refuse_input(output: Path, corpus: Corpus) -> None:
    """--overwrite must not put the list in place of the text it is mined from."""
    if output.exists() and any(output.samefile(path) for path in corpus.files):
        raise InputError("is a file of the corpus, and would be replaced", path=output, remedy="name another file")


def _read_model(path: Path) -> PieceModel:
    """Read the tokenizer, and refuse what could not be expanded exactly."""
    folder = read_folder(path)
    if folder.model_file is None:
        raise InputError(
            f"holds {JSON_FILE} alone; pieces are mined for SentencePiece BPE tokenizers only",
            path=path,
            remedy=f"give a tokenizer with a {MODEL_FILE}",
        )
    model = loading.read_model(folder)
    require_bpe(model, path)
    loading.build_fast(folder, model)  # for its complaint about what no expansion repeats exactly
    return model


def _read_sample(paths: tuple[Path, ...]) -> list[str]:
    return [document.text for document in read_corpus(paths, holdout=0.0).mined] if paths else []


def _measure(
    model: PieceModel, corpus: Corpus, texts: list[str], mined: MinedPieces, cut: Counter[str]
) -> MiningReport:
    documents = [dataclasses.replace(d, text=text) for d, text in zip(corpus.mined, texts, strict=True)]
    models = (model, expand_model(model, mined.pieces))
    return MiningReport(
        corpus=corpus,
        mined=mined,
        cut=cut,
        mined_rates=measure_categories(models, documents),
        held_out_rates=measure_categories(models, corpus.held_out),
    )


def _warn(report: MiningReport, settings: MineSettings) -> None:
    found = len(report.mined.pieces)
    if found < settings.num_pieces:
        cli.warn(f"{found} pieces were found of {settings.num_pieces}: nothing else has {settings.min_count} uses")
    if report.predicted != report.measured:
        cli.warn(f"SentencePiece needs {report.measured} tokens for the text mined, {report.predicted} were predicted")
    if report.corpus.refused:
        cli.warn(f"{len(report.corpus.refused)} lines were no records, the first: {report.corpus.refused[0]}")
    if report.corpus.ignored:
        cli.warn(f"{len(report.corpus.ignored)} files are no text, such as {report.corpus.ignored[0]}")
    if settings.holdout and not report.corpus.held_out:
        cli.warn("no document was held out: the measure is on the text mined alone")
