"""Command: give a model rows for the tokens that its tokenizer was expanded by."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run by its path: this folder stands first on sys.path, the package is two above it
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tqdm import tqdm

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.model.belonging import check_belongs, read_config, vocab_size
from colossal_llama2.model.embedding_names import find_embeddings
from colossal_llama2.model.expanding import Progress, carry_over, expand_config, expand_weights
from colossal_llama2.model.new_rows import RowPlan, plan_rows
from colossal_llama2.model.weights import WeightFiles, find_weights
from colossal_llama2.outputs import refuse_existing, whole_directory
from colossal_llama2.tokenizer.extension import Extension, read_extension
from colossal_llama2.tokenizer.folder import TOKENIZER_FILES, copy_tokenizer_files

_SETTINGS_FILE = "settings.yaml"
_LINE_EVERY = 1 << 32


@dataclass(frozen=True)
class Settings:
    """Give a model rows for the new tokens of an expanded tokenizer, each the mean of the rows of its old tokens."""

    source_model_and_tokenizer_path: Path
    """Folder of the model to expand, its own tokenizer inside."""

    target_tokenizer_path: Path
    """Folder of the expanded tokenizer, as init_tokenizer writes it."""

    target_model_path: Path
    """Folder to write model and tokenizer to; it may be the tokenizer's folder or, with --overwrite, the source."""

    pad_to_multiple_of: int = 64
    """The number of rows is rounded up to a multiple of this."""

    overwrite: bool = False
    """Replace the target folder if it exists."""


def main(settings: Settings) -> None:
    """Check that model and tokenizers belong together, write the new folder, and say what was done."""
    source, tokenizer = settings.source_model_and_tokenizer_path, settings.target_tokenizer_path
    target = settings.target_model_path
    replaces = _refuse_impossible(settings)
    check_belongs(source)
    extension = read_extension(source, tokenizer)
    weights = find_weights(source)
    names = find_embeddings(source, weights.locations())
    base_rows = vocab_size(read_config(source))
    plan = plan_rows(extension.num_base, extension.num_tokens, base_rows, settings.pad_to_multiple_of)
    with whole_directory(target, overwrite=True) as work:
        copy_tokenizer_files(tokenizer, work)
        with show_progress(weights) as progress:
            expand_weights(weights, names, extension, plan, work, progress)
        expand_config(source, tokenizer, plan.num_rows, work)
        (work / _SETTINGS_FILE).write_text(cli.as_yaml(settings), encoding="utf-8")
        behind = carry_over(source, work, link_everything=_is_same(source, target))
        if replaces and not _is_same(source, target):
            carry_over(tokenizer, work, link_everything=True)
    for line in _account(extension, plan, base_rows, names.all, behind):
        cli.say(line)


def _refuse_impossible(settings: Settings) -> bool:
    """Refuse a target that cannot be written, before any work; tell whether it is the tokenizer's own folder."""
    if settings.pad_to_multiple_of < 1:
        raise InputError(f"--pad_to_multiple_of {settings.pad_to_multiple_of}", remedy="give 1 or more")
    target = settings.target_model_path
    for folder in (settings.source_model_and_tokenizer_path, settings.target_tokenizer_path):
        if not folder.is_dir():
            raise InputError("no such folder", path=folder, remedy="give the folder of a model or tokenizer")
        if target.resolve() in folder.resolve().parents:
            raise InputError(f"the target would replace {folder} inside it", path=target, remedy="choose another")
    is_tokenizers = _is_same(target, settings.target_tokenizer_path)
    if is_tokenizers and all(path.name in (*TOKENIZER_FILES, _SETTINGS_FILE) for path in target.iterdir()):
        return True  # everything in it is carried over, so nothing is overwritten
    refuse_existing(target, settings.overwrite)
    return is_tokenizers


def _is_same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


@contextmanager
def show_progress(weights: WeightFiles) -> Iterator[Progress]:
    """Show bytes written: a bar on a terminal, elsewhere a line every few gigabytes."""
    total = sum(path.stat().st_size for path in weights.paths)
    done = 0
    with tqdm(total=total, unit="B", unit_scale=True, desc="weights", disable=not sys.stderr.isatty()) as bar:

        def progress(count: int) -> None:
            nonlocal done
            if done // _LINE_EVERY != (done + count) // _LINE_EVERY and not sys.stderr.isatty():
                cli.say(f"weights      {(done + count) / 1e9:.1f} GB written, source {total / 1e9:.1f} GB")
            done += count
            bar.update(count)

        yield progress


def _account(
    extension: Extension, plan: RowPlan, base_rows: int, names: tuple[str, ...], behind: list[str]
) -> Iterator[str]:
    yield f"tokens       {extension.num_base} -> {extension.num_tokens}"
    yield f"rows         {base_rows} -> {plan.num_rows} of {', '.join(names)}"
    if base_rows > extension.num_base:
        spare, taken = base_rows - extension.num_base, min(base_rows, extension.num_tokens) - extension.num_base
        yield f"padding      {taken} of {spare} spare rows of the base now belong to new tokens"
    if plan.num_rows > plan.num_tokens:
        yield f"padding      {plan.num_rows - plan.num_tokens} rows behind the tokens"
    if behind:
        yield f"left behind  {', '.join(behind)}"


if __name__ == "__main__":
    cli.run(Settings, main)
