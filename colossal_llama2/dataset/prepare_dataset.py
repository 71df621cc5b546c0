"""`tools/prepare_dataset.py`: conversations, preferences and prompts to rows of tokens, by the chat template."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from colossal_llama2 import cli
from colossal_llama2.dataset import conversation_ledger as ledgers
from colossal_llama2.dataset.conversation_checks import (
    check_against_transformers,
    layouts_of,
    refuse_nested,
    refuse_useless,
)
from colossal_llama2.dataset.conversation_chunks import EncodedChunk, encode_chunk
from colossal_llama2.dataset.conversation_encoding import EncodingJob, SetType
from colossal_llama2.dataset.conversation_files import split_files
from colossal_llama2.dataset.conversation_layouts import Layout
from colossal_llama2.dataset.conversation_markers import markers_of
from colossal_llama2.dataset.conversation_parts import Examples, PartJob, WrittenPart, divide, gather, write_part
from colossal_llama2.dataset.conversation_shares import (
    choose_holdout,
    count_copies,
    file_weights,
    parse_holdout,
    stage_keys,
)
from colossal_llama2.dataset.conversation_template import load_template
from colossal_llama2.dataset.encoding import tokenizer_key
from colossal_llama2.dataset.inputs import InputFile, find_inputs
from colossal_llama2.dataset.ledger import VERSION, write_manifest
from colossal_llama2.dataset.preparation import refuse_replaced
from colossal_llama2.dataset.workers import Workers, start_workers
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import refuse_existing, whole_directory
from colossal_llama2.tokenizer.loading import Encoder, load_encoder, load_tokenizer

HOLDOUT_DIR = "holdout"
TEMPLATE_FILE = "chat_template.jinja"
MAX_LENGTH = 1 << 22
MAX_BINS = 100_000
# The settings that decide the bytes, beside inputs, tokenizer and template.
_DECIDING = (
    "type",
    "layout",
    "template_date",
    "system",
    "max_length",
    "packing",
    "long_prompts",
    "data_split",
    "weights",
    "holdout",
    "num_spliced_dataset_bins",
    "seed",
    "bad_records",
)


@dataclass(frozen=True)
class PrepareSetSettings:
    """Prepare a set for alignment: conversations (sft), compared answers (preference) or prompts (prompt).

    Every conversation is written by the chat template and learned in the assistant's turns alone. docs/datasets.md
    tells the layouts that are read and the columns that are written.
    """

    type: SetType
    """What the set is for: sft, preference (reward, DPO and their kin) or prompt (PPO, GRPO)."""
    data_input_dirs: str
    """Folders (searched in depth), files or patterns, separated by commas: jsonl (also .gz, .zst), parquet or Arrow."""
    tokenizer_dir: Path
    """Tokenizer folder, or a model folder with its tokenizer inside."""
    data_arrow_output_dir: Path
    """Where the set goes: parts, manifest.json, and holdout/ with the same inside."""
    layout: Literal["auto"] | Layout = "auto"
    """Layout of the records; auto takes each file's from its first record."""
    chat_template: str = ""
    """A jinja file, or a ready template: chatml, colossal, llama2, llama3, transcript (default: the folder's own)."""
    template_date: str | None = None
    """What a template that writes today's date (date_string) is told instead."""
    system: str = ""
    """System turn for conversations that have none."""
    max_length: int = 4096
    """Tokens a row, a conversation, an answer with its prompt, or a prompt can have."""
    packing: bool = True
    """Put several conversations into a row (sft); --no_packing gives each its own."""
    long_prompts: Literal["drop", "keep_end"] = "drop"
    """Prompts longer than --max_length are left out, or keep their last tokens (prompt)."""
    data_split: str = ""
    """Shares of sft, preference and prompt in every source, as 2,4,4; this run takes its own (default: everything)."""
    weights: str = ""
    """How often sources count, as NAME=2,OTHER=0.5; a name is a file's or a named folder's (default: once)."""
    holdout: str = "0"
    """Share of each source that is set aside for evaluation, as 1%."""
    num_spliced_dataset_bins: int = 1
    """Number of parts; each has its share of every source."""
    seed: int = 42
    """Decides what is held out and thinned, and the order of rows; never the stages of --data_split."""
    num_workers: int = 0
    """Worker processes; 0 takes one a processor. The output does not depend on it."""
    bad_records: Literal["error", "skip"] = "error"
    """What to do with a line that is not a record: stop and name it, or pass it over and list it in the ledger."""
    overwrite: bool = False
    """Replace an existing output."""


@dataclass(frozen=True)
class _Plan:
    """What is known before the first record is encoded."""

    files: list[InputFile]
    ignored: list[str]
    layouts: list[Layout | None]
    encoder: Encoder
    job: EncodingJob
    weights: list[Fraction]
    holdout: Fraction


def main(settings: PrepareSetSettings) -> None:
    """Prepare the set; the output appears when everything is written and the ledger balances."""
    plan = _check(settings)
    with (
        start_workers(settings.num_workers) as workers,
        whole_directory(settings.data_arrow_output_dir, settings.overwrite) as set_dir,
    ):
        scratch = set_dir / ".encoded"
        scratch.mkdir()
        job = replace(plan.job, scratch_dir=scratch)
        chunks = split_files(plan.files, plan.layouts)
        encoded = workers.run_all(partial(encode_chunk, job=job), chunks, "encoding")
        ledger = _write(settings, plan, encoded, set_dir, workers)
        shutil.rmtree(scratch)
        write_manifest(ledger, set_dir)
        (set_dir / TEMPLATE_FILE).write_text(plan.job.template.text, encoding="utf-8")
        (set_dir / "settings.yaml").write_text(cli.as_yaml(settings), encoding="utf-8")
    ledgers.say(ledger)
    cli.say(f"{ledger['num_buckets']} parts in {settings.data_arrow_output_dir}")


def _check(settings: PrepareSetSettings) -> _Plan:
    """Refuse what cannot work before anything is written."""
    refuse_useless(settings.max_length, MAX_LENGTH, settings.num_spliced_dataset_bins, MAX_BINS)
    if settings.num_workers < 0 or settings.seed < 0:
        raise InputError("--num_workers and --seed cannot be negative", remedy="give 0 or more")
    if settings.type != "prompt" and settings.long_prompts != "drop":
        raise InputError("--long_prompts is for --type prompt", remedy="leave it out")
    if settings.type != "sft" and not settings.packing:
        raise InputError("--no_packing is for --type sft; the other sets have a row an example", remedy="leave it out")
    entries = cli.comma_separated(settings.data_input_dirs)
    if not entries:
        raise InputError("--data_input_dirs names nothing", remedy="name folders or files, separated by commas")
    stage, holdout = stage_keys(settings.data_split, settings.type), parse_holdout(settings.holdout)
    encoder, tokenizer = load_encoder(settings.tokenizer_dir), load_tokenizer(settings.tokenizer_dir)
    files, ignored = find_inputs(entries)
    refuse_existing(settings.data_arrow_output_dir, settings.overwrite)
    refuse_nested(settings.data_arrow_output_dir, entries, settings.tokenizer_dir)
    refuse_replaced(files, [settings.data_arrow_output_dir])
    job = EncodingJob(
        type=settings.type,
        template=load_template(tokenizer, settings.chat_template, settings.template_date),
        markers=markers_of(tokenizer),
        tokenizer_dir=settings.tokenizer_dir,
        tokenizer_key=tokenizer_key(settings.tokenizer_dir, encoder),
        system=settings.system.strip(),
        max_length=settings.max_length,
        keep_end=settings.long_prompts == "keep_end",
        stage=stage,
        skip_bad_records=settings.bad_records == "skip",
        scratch_dir=Path(),
    )
    weights = file_weights(settings.weights, files)
    layouts = layouts_of(files, settings.layout, settings.type, job.skip_bad_records)
    check_against_transformers(files, layouts, job, encoder, tokenizer)
    return _Plan(files, ignored, layouts, encoder, job, weights, holdout)


def _write(
    settings: PrepareSetSettings,
    plan: _Plan,
    encoded: Sequence[EncodedChunk],
    set_dir: Path,
    workers: Workers,
) -> dict[str, Any]:
    """Divide the examples, write the parts, and return the ledger."""
    examples = gather(encoded)
    is_held = choose_holdout(examples.keys, examples.sources, plan.holdout, settings.seed)
    held, train = examples.choose(is_held), examples.choose(~is_held)
    copies = count_copies(train.keys, train.sources, plan.weights, settings.seed)
    taken = train.choose(np.repeat(np.arange(len(train)), copies))
    _refuse_too_few(settings, len(examples), len(taken))
    parts = divide(taken, settings.num_spliced_dataset_bins, settings.seed)
    written = _write_parts(settings, parts, encoded, set_dir, workers)
    entries = ledgers.file_entries(plan.files, plan.layouts, encoded)
    ledgers.add_destinations(entries, held, copies, train)
    ledgers.balance(entries, examples)
    heading = _heading(settings, plan)
    if len(held):
        holdout_dir = set_dir / HOLDOUT_DIR
        holdout_dir.mkdir()
        held_written = _write_parts(settings, [held], encoded, holdout_dir, workers)
        buckets = ledgers.part_entries(held_written, settings.max_length)
        write_manifest({**heading, "num_buckets": 1, "is_holdout": True, "buckets": buckets}, holdout_dir)
    return {
        **heading,
        "files": entries,
        "ignored_files": plan.ignored,
        "buckets": ledgers.part_entries(written, settings.max_length),
        "totals": ledgers.totals(entries, written, settings.max_length),
        "refused_records": ledgers.lines_of(plan.files, encoded, refused=True),
        "left_out_records": ledgers.lines_of(plan.files, encoded, refused=False),
    }


def _write_parts(
    settings: PrepareSetSettings,
    parts: Sequence[Examples],
    encoded: Sequence[EncodedChunk],
    set_dir: Path,
    workers: Workers,
) -> list[WrittenPart]:
    jobs = [
        PartJob(part, examples, encoded, settings.type, settings.max_length, settings.packing, settings.seed, set_dir)
        for part, examples in enumerate(parts)
    ]
    written = workers.run_all(write_part, jobs, "writing parts")
    ledgers.balance_parts(parts, written)
    return written


def _refuse_too_few(settings: PrepareSetSettings, used: int, taken: int) -> None:
    where = settings.data_input_dirs
    if not used:
        raise InputError("holds no record that can be used", path=where, remedy="name folders with records in them")
    if not taken:
        raise InputError("nothing is left to learn from", path=where, remedy="hold out less, or give more weight")
    if taken < settings.num_spliced_dataset_bins:
        what = f"{taken} records cannot fill {settings.num_spliced_dataset_bins} parts"
        raise InputError(what, path=where, remedy=f"pass --num_spliced_dataset_bins {taken} or fewer")


def _heading(settings: PrepareSetSettings, plan: _Plan) -> dict[str, Any]:
    encoder, template = plan.encoder, plan.job.template
    deciding = [VERSION, template.text, *(getattr(settings, name) for name in _DECIDING)]
    return {
        "version": VERSION,
        "type": settings.type,
        "max_length": settings.max_length,
        "num_buckets": settings.num_spliced_dataset_bins,
        "seed": settings.seed,
        "settings_sha256": hashlib.sha256(repr(deciding).encode()).hexdigest(),
        "tokenizer": {
            "fingerprint": encoder.fingerprint,
            "num_tokens": encoder.num_tokens,
            "bos_token_id": encoder.bos_token_id,
            "eos_token_id": encoder.eos_token_id,
        },
        "chat_template": {
            "source": template.source,
            "sha256": hashlib.sha256(template.text.encode()).hexdigest(),
            "text": template.text,
            "system": settings.system.strip(),
            "date": settings.template_date,
        },
    }


if __name__ == "__main__":
    cli.run(PrepareSetSettings, main)
