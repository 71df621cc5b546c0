"""The command `tools/evaluate.py`: a table of bits per byte and tokens per character, one line a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import read_jsonl, string_field
from colossal_llama2.model.inference import load_for_inference
from colossal_llama2.outputs import refuse_existing, whole_file
from colossal_llama2.report.evaluation import Score, Text, evaluate


@dataclass(frozen=True)
class EvaluateSettings:
    """Measure how well a model predicts text, in bits per byte: comparable whatever its vocabulary."""

    model: Path
    """Model folder, its tokenizer inside."""
    data: tuple[Path, ...]
    """Files of pretraining records (source, target, category); a source is read but not scored."""
    output: Path | None = None
    """File for the results as JSON."""
    max_length: int | None = None
    """Most tokens the model sees at once (default: its context length); longer texts are read in windows that overlap
    by half, so that every byte counts once."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 ..."""
    overwrite: bool = False
    """Replace an output that exists."""


def main(settings: EvaluateSettings) -> None:
    """Read the texts, load the model, score file by file, print the table."""
    if not settings.data:
        raise InputError("--data names no file", remedy="give at least one jsonl file")
    if settings.max_length is not None and settings.max_length < 2:
        raise InputError(f"--max_length is {settings.max_length}", remedy="give at least 2")
    if settings.output is not None:
        refuse_existing(settings.output, settings.overwrite)
    texts = {path: read_texts(path) for path in settings.data}
    loaded = load_for_inference(settings.model, settings.device)
    window = settings.max_length or loaded.context_length
    if window > loaded.context_length:
        raise InputError(
            f"--max_length is {window} and the model's context {loaded.context_length} tokens",
            remedy=f"give at most {loaded.context_length}",
        )
    scores: dict[Path, Score] = {}
    for path, of_file in texts.items():
        with tqdm(desc=path.name, unit=" tokens", disable=not sys.stderr.isatty(), leave=False) as bar:
            scores[path] = evaluate(
                loaded.model, loaded.encoder, of_file, loaded.document_start, window, progress=bar.update
            )
    cli.say(table(scores))
    if settings.output is not None:
        write_results(settings, scores)


def read_texts(path: Path) -> list[Text]:
    """Read a file of pretraining records; records with an empty target have nothing to score and are left out, aloud.

    Raises:
        InputError: the file is not one, or holds nothing to score.
    """
    texts, empty = [], 0
    for line, record in read_jsonl(path):
        text = Text(string_field(record, "target", path, line), string_field(record, "source", path, line, default=""))
        if text.target:
            texts.append(text)
        else:
            empty += 1
    if empty:
        cli.warn(f"{path}: {empty} records have an empty target and are not scored")
    if not texts:
        raise InputError("holds no text to score", path=path, remedy='give records with a "target"')
    return texts


def table(scores: dict[Path, Score]) -> str:
    """Lay the scores out as lines of text."""
    header = ("file", "documents", "characters", "tokens", "tokens/char", "scored bytes", "bits/byte")
    lines = [
        (
            path.name,
            f"{score.documents:,}",
            f"{score.characters:,}",
            f"{score.tokens:,}",
            f"{score.tokens_per_character:.3f}",
            f"{score.scored_bytes:,}",
            f"{score.bits_per_byte:.4f}",
        )
        for path, score in scores.items()
    ]
    return align_columns([header, *lines])


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Set rows of cells in columns: the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def write_results(settings: EvaluateSettings, scores: dict[Path, Score]) -> None:
    """Write the scores and the settings they were measured with as one JSON file."""
    assert settings.output is not None
    files = [
        asdict(score)
        | {
            "file": str(path),
            "bits_per_byte": score.bits_per_byte,
            "tokens_per_character": score.tokens_per_character,
        }
        for path, score in scores.items()
    ]
    results = {"model": str(settings.model), "max_length": settings.max_length, "files": files}
    with whole_file(settings.output, settings.overwrite) as work:
        work.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(EvaluateSettings, main)
