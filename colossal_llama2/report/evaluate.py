"""The command `tools/evaluate.py`: bits per byte and tokens per character, a line for each model and file."""

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
from colossal_llama2.model.adapter_files import check_base
from colossal_llama2.model.belonging import check_belongs
from colossal_llama2.model.inference import load_for_inference
from colossal_llama2.outputs import refuse_existing, whole_file
from colossal_llama2.report.evaluation import Score, Text, evaluate


@dataclass(frozen=True)
class EvaluateSettings:
    """Measure how well models predict text, in bits per byte: comparable whatever their vocabulary."""

    model: tuple[Path, ...]
    """Model folders, their tokenizers inside."""
    data: tuple[Path, ...]
    """Files of pretraining records (source, target, category); a source is read but not scored."""
    adapter: tuple[Path, ...] = ()
    """LoRA adapters; each is scored on the one --model beside that model alone."""
    output: Path | None = None
    """File for the results as JSON."""
    max_length: int | None = None
    """Most tokens a model sees at once (default: its context length); longer texts are read in windows that overlap
    by half, so that every byte counts once."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 ..."""
    overwrite: bool = False
    """Replace an output that exists."""


@dataclass(frozen=True)
class Candidate:
    """What is scored: a model, or a model with an adapter on it."""

    model_dir: Path
    adapter_dir: Path | None = None

    def __str__(self) -> str:
        return str(self.model_dir) if self.adapter_dir is None else f"{self.model_dir} + {self.adapter_dir}"


def main(settings: EvaluateSettings) -> None:
    """Read the texts, score model by model and file by file, print the table."""
    if not settings.model or not settings.data:
        raise InputError("nothing to do", remedy="give at least one --model and one --data")
    if settings.max_length is not None and settings.max_length < 2:
        raise InputError(f"--max_length is {settings.max_length}", remedy="give at least 2")
    if settings.output is not None:
        refuse_existing(settings.output, settings.overwrite)
    if settings.adapter and len(settings.model) != 1:
        raise InputError("--adapter with several models", remedy="give the one --model that they were trained on")
    candidates = [Candidate(model_dir) for model_dir in settings.model]
    candidates += [Candidate(settings.model[0], adapter_dir) for adapter_dir in settings.adapter]
    for candidate in candidates:  # before hours are spent on those named before it
        check_belongs(candidate.model_dir)
        if candidate.adapter_dir is not None:
            check_base(candidate.adapter_dir, candidate.model_dir)
    texts = {path: read_texts(path) for path in settings.data}
    scores: dict[Candidate, dict[Path, Score]] = {}
    for candidate in candidates:
        scores[candidate] = score_model(candidate, texts, settings)
    cli.say(table(scores))
    if settings.output is not None:
        write_results(settings, scores)


def score_model(candidate: Candidate, texts: dict[Path, list[Text]], settings: EvaluateSettings) -> dict[Path, Score]:
    """Score every file with one model.

    Raises:
        InputError: the model cannot be loaded, or its context is shorter than what was asked for.
    """
    loaded = load_for_inference(candidate.model_dir, settings.device, candidate.adapter_dir)
    window = settings.max_length or loaded.context_length
    if window > loaded.context_length:
        raise InputError(
            f"--max_length is {window} and the model's context {loaded.context_length} tokens",
            path=candidate.model_dir,
            remedy=f"give at most {loaded.context_length}",
        )
    scores = {}
    for path, of_file in texts.items():
        description = f"{(candidate.adapter_dir or candidate.model_dir).name} {path.name}"
        with tqdm(desc=description, unit=" tokens", disable=not sys.stderr.isatty(), leave=False) as bar:
            scores[path] = evaluate(
                loaded.model, loaded.encoder, of_file, loaded.document_start, window, progress=bar.update
            )
    return scores


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


def table(scores: dict[Candidate, dict[Path, Score]]) -> str:
    """Lay the scores out as lines of text, a line for each model and file."""
    header = ("model", "file", "documents", "characters", "tokens", "tokens/char", "scored bytes", "bits/byte")
    lines = [
        (
            str(candidate),
            path.name,
            f"{score.documents:,}",
            f"{score.characters:,}",
            f"{score.tokens:,}",
            f"{score.tokens_per_character:.3f}",
            f"{score.scored_bytes:,}",
            f"{score.bits_per_byte:.4f}",
        )
        for candidate, of_model in scores.items()
        for path, score in of_model.items()
    ]
    return align_columns([header, *lines])


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Set rows of cells in columns: those of words to the left, those of numbers to the right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    numbers = [all(cell[:1].isdigit() for cell in column[1:]) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in rows
    )


def write_results(settings: EvaluateSettings, scores: dict[Candidate, dict[Path, Score]]) -> None:
    """Write the scores and the settings they were measured with as one JSON file."""
    assert settings.output is not None
    lines = [
        {
            "model": str(candidate.model_dir),
            "adapter": None if candidate.adapter_dir is None else str(candidate.adapter_dir),
            "file": str(path),
            **asdict(score),
            "bits_per_byte": score.bits_per_byte,
            "tokens_per_character": score.tokens_per_character,
        }
        for candidate, of_model in scores.items()
        for path, score in of_model.items()
    ]
    results = {"max_length": settings.max_length, "scores": lines}
    with whole_file(settings.output, settings.overwrite) as work:
        work.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(EvaluateSettings, main)
