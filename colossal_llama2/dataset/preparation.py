"""What a preparation is told, and everything that is refused before it writes a byte."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from colossal_llama2 import cli
from colossal_llama2.dataset.input_options import InputOptions
from colossal_llama2.dataset.inputs import InputFile, find_inputs
from colossal_llama2.dataset.selecting import parse_share
from colossal_llama2.dataset.splicing import Cutting, Splice
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import refuse_existing
from colossal_llama2.tokenizer.loading import Encoder, EncoderKind, load_encoder

MAX_BINS: Final = 100_000
WORTH_LOADING: Final = 16 << 20
"""Bytes of input; below, loading gigatoken takes longer than encoding without it."""
WORTH_PROVING: Final = 64 << 20
"""The same where a tokenizer meets gigatoken for the first time, and is proved to be read rightly by it."""
MAX_LENGTH: Final = 1 << 22  # a batch of rows is addressed with 32 bits


@dataclass(frozen=True)
class SpliceOptions:
    """How documents become rows."""

    max_length: int = 4096
    """Tokens a row can hold; longer documents go on in further rows of the same bucket."""
    splice: Splice = "best_fit"
    """best_fit keeps documents whole where they fit; sequential lays them end to end and cuts where a row is full."""
    bos_each_piece: bool = False
    """Put a bos before every piece that continues a document; without it, the first token of a piece is not learned."""
    min_piece: int = 1
    """Never cut a document so that a piece of it has fewer tokens than this."""

    @property
    def cutting(self) -> Cutting:
        """The same, for the splicer."""
        return Cutting(self.max_length, self.bos_each_piece, self.min_piece)


@dataclass(frozen=True)
class MixOptions:
    """Which documents are taken, and how they are divided."""

    num_spliced_dataset_bins: int = 10
    """Number of buckets; each gets its share of every category."""
    category_weights: str = ""
    """How often the documents of a category are taken, as a=2,b=0.5; 1 where nothing is said."""
    holdout: str = "0"
    """Share of each category that is set aside for validation, such as 0.1%; it goes to holdout/ in the output."""
    seed: int = 42
    """Decides the order of rows inside a bucket, and which documents a share takes."""


@dataclass(frozen=True)
class WorkOptions:
    """Who does the work; the output does not depend on it."""

    num_workers: int = 0
    """Worker processes; 0 takes one a processor."""
    executor: Literal["local", "ray"] = "local"
    """Processes of this machine, or a Ray cluster whose machines share the input, cache and output folders."""
    encoder: EncoderKind = "auto"
    """What makes tokens of text: the tokenizer's reference library, gigatoken where that is proved to give the same,
    or auto: gigatoken where it is worth loading. The output does not depend on it."""
    ray_address: str = "auto"
    """The cluster to join with --executor ray."""


@dataclass(frozen=True)
class PrepareSettings:
    """Encode, splice and bucket corpora for continued pretraining.

    A record is {"source": "...", "target": "...", "category": "..."}: the target is learned, the source is seen, the
    category names the sub-dataset and is spread over all buckets.
    """

    data_input_dirs: str
    """Folders (searched in depth), files or patterns such as 'data/*.jsonl.gz', separated by commas."""
    tokenizer_dir: Path
    """Tokenizer folder, or a model folder with its tokenizer inside."""
    data_cache_dir: Path = Path("jsonl_to_arrow_cache")
    """Encoded shards are kept here; a second run over the same text takes them up again."""
    data_jsonl_output_dir: Path | None = Path("spliced_tokenized_output_jsonl")
    """The spliced rows as jsonl, one file a bucket; None writes none."""
    data_arrow_output_dir: Path = Path("spliced_tokenized_output_arrow")
    """The spliced rows as Arrow, one folder a bucket, and manifest.json: what train.py reads."""
    inputs: InputOptions = field(default_factory=InputOptions)
    splicing: SpliceOptions = field(default_factory=SpliceOptions)
    mix: MixOptions = field(default_factory=MixOptions)
    work: WorkOptions = field(default_factory=WorkOptions)
    overwrite: bool = False
    """Replace existing outputs."""


def check(settings: PrepareSettings) -> tuple[list[InputFile], list[str], Encoder]:
    """Refuse what cannot work, and find the input.

    Returns:
        The files, the names of those passed over, and the tokenizer.

    Raises:
        InputError: a setting, an input or an output is impossible.
    """
    _check_numbers(settings)
    entries = cli.comma_separated(settings.data_input_dirs)
    if not entries:
        raise InputError("--data_input_dirs names nothing", remedy="name folders or files, separated by commas")
    files, ignored = find_inputs(entries)
    outputs = _outputs(settings)
    half_done = is_half_done(settings)
    for folder in outputs:
        refuse_existing(folder, settings.overwrite or (half_done and folder == settings.data_jsonl_output_dir))
    _refuse_nested(settings, entries, outputs)
    refuse_replaced(files, outputs)
    encoder = _load(settings, sum(file.num_bytes for file in files))
    if encoder.bos_token_id is None and encoder.eos_token_id is None:
        raise InputError(
            "has neither a beginning-of-sequence nor an end-of-sequence token, so documents would run together",
            path=settings.tokenizer_dir,
            remedy="name eos_token in its tokenizer_config.json",
        )
    if settings.splicing.bos_each_piece and encoder.bos_token_id is None:
        raise InputError(
            "has no beginning-of-sequence token for --bos_each_piece",
            path=settings.tokenizer_dir,
            remedy="leave --bos_each_piece out",
        )
    return files, ignored, encoder


def is_half_done(settings: PrepareSettings) -> bool:
    """Tell whether these very settings were killed after the jsonl output got its name and before the Arrow output did.

    Then the jsonl output is this command's own, and is written again.
    """
    jsonl, arrow = settings.data_jsonl_output_dir, settings.data_arrow_output_dir
    if jsonl is None or arrow.exists():
        return False
    try:
        return (jsonl / "settings.yaml").read_text(encoding="utf-8") == cli.as_yaml(settings)
    except (OSError, UnicodeDecodeError):
        return False


def _load(settings: PrepareSettings, num_bytes: int) -> Encoder:
    """Load the encoder that is the fastest for so much text, the time it takes to load included."""
    kind = settings.work.encoder
    if kind == "auto" and num_bytes < WORTH_LOADING:
        kind = "reference"
    return load_encoder(settings.tokenizer_dir, kind=kind, may_prove=num_bytes >= WORTH_PROVING)


def _check_numbers(settings: PrepareSettings) -> None:
    splicing, mix = settings.splicing, settings.mix
    if not 2 <= splicing.max_length <= MAX_LENGTH:
        raise InputError(
            f"--max_length is {splicing.max_length}",
            remedy=f"give 2 (one token predicts the next) to {MAX_LENGTH}",
        )
    if not 1 <= splicing.min_piece <= splicing.cutting.room // 2:
        raise InputError(
            f"--min_piece is {splicing.min_piece}", remedy=f"give 1 to {splicing.cutting.room // 2}, half a row at most"
        )
    if not 1 <= mix.num_spliced_dataset_bins <= MAX_BINS:
        raise InputError(
            f"--num_spliced_dataset_bins is {mix.num_spliced_dataset_bins}", remedy=f"give 1 to {MAX_BINS}"
        )
    if settings.work.num_workers < 0 or mix.seed < 0:
        raise InputError("--num_workers and --seed cannot be negative", remedy="give 0 or more")
    parse_share(mix.holdout)
    settings.inputs.check()


def _outputs(settings: PrepareSettings) -> list[Path]:
    jsonl = settings.data_jsonl_output_dir
    return [settings.data_arrow_output_dir, *([] if jsonl is None else [jsonl])]


def _refuse_nested(settings: PrepareSettings, entries: Sequence[str], outputs: Sequence[Path]) -> None:
    """Refuse an output that something else lies in: it is replaced as a whole, with everything inside."""
    if len({output.resolve() for output in outputs}) < len(outputs):
        raise InputError("both outputs go to one folder", path=outputs[0], remedy="name two")
    others = [*map(Path, entries), settings.tokenizer_dir, settings.data_cache_dir, *outputs]
    for output in outputs:
        for other in others:
            if other is not output and other.resolve().is_relative_to(output.resolve()):
                raise InputError(f"{other} lies in this output", path=output, remedy="name a folder of its own")
        for entry in map(Path, entries):
            if output.resolve().is_relative_to(entry.resolve()):
                what = f"lies in the input {entry} and would be read with it the next time"
                raise InputError(what, path=output, remedy="name a folder outside the input")


def refuse_replaced(files: Sequence[InputFile], outputs: Sequence[Path]) -> None:
    """Refuse an output that a file lies in which a pattern has found: only the files tell that.

    Raises:
        InputError: naming both.
    """
    roots = {root: os.path.realpath(root) for root in {file.root for file in files}}
    for output in outputs:
        place = f"{output.resolve()}/"
        above = {root for root, real in roots.items() if place.startswith(f"{real}/")}
        for file in files:
            if file.root in above and f"{roots[file.root]}/{file.name.partition('/')[2]}".startswith(place):
                raise InputError(f"{file.path} lies in this output", path=output, remedy="name a folder of its own")
