"""Command: give a model rows for the tokens that its tokenizer was expanded by."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

if not __package__:  # run by its path: this folder stands first on sys.path, the package is two above it
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tqdm import tqdm

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.model.belonging import check_belongs, read_config, vocab_size
from colossal_llama2.model.cuts import Cuts, colliding
from colossal_llama2.model.distilled_rows import DistillOptions, Start, check_options, distill
from colossal_llama2.model.embedding_names import EmbeddingNames, find_embeddings
from colossal_llama2.model.expanding import Progress, carry_over, expand_config, expand_weights
from colossal_llama2.model.new_rows import RowPlan, RowSource, as_given, averages, drawn, plan_rows
from colossal_llama2.model.quantized import refuse_quantized
from colossal_llama2.model.weights import WeightFiles, find_weights
from colossal_llama2.outputs import refuse_existing, whole_directory
from colossal_llama2.tokenizer.extension import Extension, read_extension
from colossal_llama2.tokenizer.folder import TOKENIZER_FILES, copy_tokenizer_files

_SETTINGS_FILE = "settings.yaml"
_LINE_EVERY = 1 << 32


Method = Literal["mean", "weighted", "distilled", "random"]


@dataclass(frozen=True)
class Settings:
    """Give a model rows for the new tokens of an expanded tokenizer, each made from the rows of its old tokens."""

    source_model_and_tokenizer_path: Path
    """Folder of the model to expand, its own tokenizer inside."""

    target_tokenizer_path: Path
    """Folder of the expanded tokenizer, as init_tokenizer writes it."""

    target_model_path: Path
    """Folder to write model and tokenizer to; it may be the tokenizer's folder or, with --overwrite, the source."""

    init: Method = "mean"
    """How a new row starts: as the mean of the rows of its old tokens; as a mean in which parts that many new tokens
    share weigh less; distilled on text (--distill_corpus), so that the model reads the token as it read its parts; or
    at random, for comparison."""

    output_init: Literal["auto", "mean", "weighted", "distilled", "random"] = "auto"
    """How a new row of the output head starts, where that is a matrix of its own; distilled: learned by next-token
    prediction on the same text; auto: as --init says, but beside weighted rows as the mean, which measured better."""

    distill: DistillOptions = field(default_factory=DistillOptions)
    """How rows are distilled."""

    seed: int = 42
    """Decides rows at random, and the order of the text that rows are distilled on."""

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
    refuse_quantized(source, "cannot be given new rows")
    extension = read_extension(source, tokenizer)
    weights = find_weights(source)
    names = find_embeddings(source, weights.locations())
    methods = _methods(settings, names)
    base_rows = vocab_size(read_config(source))
    plan = plan_rows(extension.num_base, extension.num_tokens, base_rows, settings.pad_to_multiple_of)
    cuts = Cuts.of(extension.base_tokens)
    sources, said = _sources(settings, names, methods, extension, cuts)
    with whole_directory(target, overwrite=True) as work:
        copy_tokenizer_files(tokenizer, work)
        with show_progress(weights) as progress:
            moved = expand_weights(weights, sources, plan, work, progress)
        expand_config(source, tokenizer, plan.num_rows, work)
        (work / _SETTINGS_FILE).write_text(cli.as_yaml(settings), encoding="utf-8")
        behind = carry_over(source, work, link_everything=_is_same(source, target))
        if replaces and not _is_same(source, target):
            carry_over(tokenizer, work, link_everything=True)
    for line in [*_account(extension, plan, base_rows, names.all, behind), *said, *_told_apart(methods, cuts, moved)]:
        cli.say(line)


def _methods(settings: Settings, names: EmbeddingNames) -> tuple[Method, Method]:
    """Return how rows of the input embedding and of the output head start.

    Raises:
        InputError: the two are one matrix and were asked for apart.
    """
    if settings.output_init == "auto":
        return settings.init, "mean" if settings.init == "weighted" and not names.tied else settings.init
    if names.tied:
        raise InputError(
            f"--output_init {settings.output_init}, but embedding and output head of this model are one matrix",
            path=settings.source_model_and_tokenizer_path,
            remedy="leave it out",
        )
    return settings.init, settings.output_init


def _sources(
    settings: Settings, names: EmbeddingNames, methods: tuple[Method, Method], extension: Extension, cuts: Cuts
) -> tuple[dict[str, RowSource], list[str]]:
    """Say where the new rows of each tensor come from; the bias of a head is always a mean."""
    made: list[RowSource] = []
    for number, method in enumerate(methods):
        if method == "random":
            made.append(drawn(len(cuts), settings.seed + number))
        else:  # what is distilled begins where that measured best: at weighted inputs, if those are not outputs too
            begins_weighted = method == "distilled" and number == 0 and not names.tied
            made.append(averages(cuts, telling=method == "weighted" or begins_weighted))
    said: list[str] = []
    if "distilled" in methods and len(cuts):
        start = Start(
            model_dir=settings.source_model_and_tokenizer_path,
            tokenizer_dir=settings.target_tokenizer_path,
            extension=extension,
            inputs=made[0],
            outputs=made[1],
            learn_inputs=methods[0] == "distilled",
            learn_outputs=methods[1] == "distilled",
            seed=settings.seed,
        )
        rows, said = distill(start, settings.distill)
        made = [as_given(rows.inputs), as_given(rows.outputs)]
    sources = {name: made[0] for name in (names.inputs,) if name is not None}
    if names.output is not None:
        sources[names.output] = made[0] if names.tied else made[1]
    if names.output_bias is not None:
        sources[names.output_bias] = averages(cuts)
    return sources, said


def _refuse_impossible(settings: Settings) -> bool:
    """Refuse a target that cannot be written, before any work; tell whether it is the tokenizer's own folder."""
    if settings.pad_to_multiple_of < 1:
        raise InputError(f"--pad_to_multiple_of {settings.pad_to_multiple_of}", remedy="give 1 or more")
    if settings.seed < 0:
        raise InputError(f"--seed {settings.seed}", remedy="give 0 or more")
    check_options(settings.distill, wanted="distilled" in (settings.init, settings.output_init))
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


def _told_apart(methods: tuple[Method, Method], cuts: Cuts, moved: int) -> Iterator[str]:
    tilted = int(colliding(cuts).sum())
    if tilted and set(methods) != {"random"}:
        yield f"told apart   {tilted} new tokens with the parts of another one: in their rows later parts count more"
    if moved:
        yield f"told apart   {moved} rows that were identical to another new one, by a hundredth of the rows' spread"


if __name__ == "__main__":
    cli.run(Settings, main)
