"""`tools/prepare_pretrain_dataset.py`: corpora to spliced rows in balanced buckets, every token accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from colossal_llama2 import cli
from colossal_llama2.dataset.deduplication import find_duplicates
from colossal_llama2.dataset.encoded import EncodedShard, ShardHashes
from colossal_llama2.dataset.encoding import EncodingJob, encode_shard, share_encoder, tokenizer_key
from colossal_llama2.dataset.inputs import InputFile, Shard, split_into_shards
from colossal_llama2.dataset.ledger import (
    MANIFEST,
    REFUSED_FILE,
    VERSION,
    balance,
    bucket_ledger,
    category_ledger,
    totals,
    write_file_ledger,
    write_manifest,
)
from colossal_llama2.dataset.planning import HOLDOUT_FILE, Plan, Selection, category_names, make_plan
from colossal_llama2.dataset.preparation import PrepareSettings, check, is_half_done
from colossal_llama2.dataset.rows import BucketJob, CutCounts, WrittenBucket, write_bucket
from colossal_llama2.dataset.selecting import parse_share, parse_weights, weight_array
from colossal_llama2.dataset.workers import Workers, start_workers
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import scratch_directory, whole_directory
from colossal_llama2.tokenizer.loading import Encoder

HOLDOUT_DIR = "holdout"


@dataclass(frozen=True)
class _Preparation:
    """What stays the same through all steps."""

    settings: PrepareSettings
    encoder: Encoder
    files: list[InputFile]
    shards: list[Shard]
    ignored: list[str]


def main(settings: PrepareSettings) -> None:
    """Prepare the corpus; the output folders appear when everything is written and the ledger balances."""
    files, ignored, encoder = check(settings)
    preparation = _Preparation(settings, encoder, files, split_into_shards(files), ignored)
    work = settings.work
    job = _encoding_job(preparation)
    share_encoder(job, encoder)  # before the workers are there, which may inherit it
    with start_workers(work.num_workers, work.ray_address if work.executor == "ray" else None) as workers:
        encoded = workers.run_all(partial(encode_shard, job=job), preparation.shards, "encoding")
        with scratch_directory(settings.data_cache_dir, "plan") as folder:
            plan = _plan(preparation, encoded, folder)
            _warn(preparation)
            jsonl, replaces = settings.data_jsonl_output_dir, settings.overwrite or is_half_done(settings)
            if replaces and not settings.overwrite:
                cli.warn(
                    f"{jsonl} is of these settings and {settings.data_arrow_output_dir} is not there: taken for what a "
                    "run left that was killed, and written again"
                )
            with (
                whole_directory(settings.data_arrow_output_dir, settings.overwrite) as arrow_dir,
                nullcontext() if jsonl is None else whole_directory(jsonl, replaces) as jsonl_dir,  # named first
            ):
                ledger = _write(preparation, encoded, plan, workers, arrow_dir, jsonl_dir)
    _report(settings, ledger)


def _encoding_job(preparation: _Preparation) -> EncodingJob:
    settings = preparation.settings
    cache_dir = settings.data_cache_dir
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be created ({error.strerror})", path=cache_dir, remedy="name another --data_cache_dir"
        ) from None
    return EncodingJob(
        settings.tokenizer_dir.absolute(),
        tokenizer_key(settings.tokenizer_dir, preparation.encoder),
        cache_dir.absolute(),
        settings.inputs.reading,
        settings.inputs.deduplicate,
        "reference" if preparation.encoder.proof is None else "auto",
        preparation.encoder.proof,
    )


def _plan(preparation: _Preparation, encoded: Sequence[EncodedShard], folder: Path) -> Plan:
    settings = preparation.settings
    names = category_names(encoded)
    if not any(shard.num_documents for shard in encoded):
        raise InputError("holds no record", path=settings.data_input_dirs, remedy="name folders with records in them")
    weights = weight_array(parse_weights(settings.mix.category_weights, names), names)
    selection = Selection(
        settings.mix.num_spliced_dataset_bins,
        settings.splicing.max_length,
        settings.mix.seed,
        weights,
        parse_share(settings.mix.holdout),
    )
    plan = make_plan(encoded, _duplicates(settings, encoded), selection, folder)
    bins, documents = settings.mix.num_spliced_dataset_bins, int(plan.documents_per_bucket.sum())
    if documents < bins:
        raise InputError(
            f"{documents} documents cannot fill {bins} buckets, and a document stays in one",
            path=settings.data_input_dirs,
            remedy=f"pass --num_spliced_dataset_bins {max(documents, 1)} or fewer",
        )
    return plan


def _duplicates(settings: PrepareSettings, encoded: Sequence[EncodedShard]) -> list[npt.NDArray[np.bool_]] | None:
    """Return for each shard which documents are left out because their text stood before."""
    if settings.inputs.deduplicate == "none":
        return None
    return find_duplicates(ShardHashes(encoded), settings.inputs.deduplicate, settings.inputs.dedup_threshold)


def _write(
    preparation: _Preparation,
    encoded: Sequence[EncodedShard],
    plan: Plan,
    workers: Workers,
    arrow_dir: Path,
    jsonl_dir: Path | None,
) -> dict[str, Any]:
    """Write the buckets, what is held out, and the ledger; return the ledger."""
    settings = preparation.settings
    num_buckets, max_length = settings.mix.num_spliced_dataset_bins, settings.splicing.max_length
    jobs = [_job(preparation, plan, bucket, bucket, arrow_dir, jsonl_dir) for bucket in range(num_buckets)]
    holdout_dir = arrow_dir / HOLDOUT_DIR
    if plan.held_out.documents.any():
        holdout_dir.mkdir()
        jobs.append(_job(preparation, plan, num_buckets, 0, holdout_dir, None))
    results = workers.run_all(write_bucket, jobs, "writing buckets")
    holdout = results.pop() if len(results) > num_buckets else None
    written = [bucket for bucket, _ in results]
    cuts = CutCounts.sum_of([counts for _, counts in results], len(plan.category_names))
    no_cuts = CutCounts.sum_of([], len(plan.category_names))
    sums = write_file_ledger(preparation.files, preparation.shards, encoded, arrow_dir)
    balance(sums, plan, results, holdout)
    heading = _heading(settings, preparation.encoder)
    ledger: dict[str, Any] = {
        **heading,
        "totals": totals(sums, plan, written, cuts, max_length),
        "ignored_files": preparation.ignored,
        "categories": category_ledger(plan, cuts, no_cuts if holdout is None else holdout[1]),
        "buckets": bucket_ledger(plan, written, max_length),
    }
    write_manifest(ledger, arrow_dir)
    if holdout is not None:
        write_manifest({**heading, "num_buckets": 1, "buckets": [_holdout_bucket(plan, holdout[0])]}, holdout_dir)
    for folder in filter(None, (arrow_dir, jsonl_dir)):
        (folder / "settings.yaml").write_text(cli.as_yaml(settings), encoding="utf-8")
    return ledger


def _job(
    preparation: _Preparation, plan: Plan, number: int, part: int, arrow_dir: Path, jsonl_dir: Path | None
) -> BucketJob:
    settings = preparation.settings
    is_holdout = number == settings.mix.num_spliced_dataset_bins
    return BucketJob(
        number,
        part,
        plan.folder / HOLDOUT_FILE if is_holdout else plan.member_file(number),
        arrow_dir,
        jsonl_dir,
        len(plan.category_names),
        settings.splicing.splice,
        settings.splicing.cutting,
        preparation.encoder.bos_token_id,
        settings.mix.seed,
    )


def _holdout_bucket(plan: Plan, bucket: WrittenBucket) -> dict[str, Any]:
    counts = {name: int(getattr(plan.held_out, name).sum()) for name in ("documents", "characters")}
    return {**vars(bucket), **counts}


def _heading(settings: PrepareSettings, encoder: Encoder) -> dict[str, Any]:
    deciding = [VERSION, settings.inputs, settings.splicing, settings.mix]
    return {
        "version": VERSION,
        "max_length": settings.splicing.max_length,
        "num_buckets": settings.mix.num_spliced_dataset_bins,
        "seed": settings.mix.seed,
        "splice": settings.splicing.splice,
        "bos_each_piece": settings.splicing.bos_each_piece,
        "min_piece": settings.splicing.min_piece,
        "settings_sha256": hashlib.sha256(repr(deciding).encode()).hexdigest(),
        "tokenizer": {
            "fingerprint": encoder.fingerprint,
            "num_tokens": encoder.num_tokens,
            "bos_token_id": encoder.bos_token_id,
            "eos_token_id": encoder.eos_token_id,
        },
    }


def _warn(preparation: _Preparation) -> None:
    """Say what may surprise; only once nothing can be refused any more, so that a refusal is one line."""
    ignored = preparation.ignored
    if ignored:
        cli.warn(
            f"{len(ignored)} files are of no kind that can be read here and were passed over: {', '.join(ignored[:3])}"
            + " ..." * (len(ignored) > 3)
        )
    if preparation.encoder.eos_token_id is None:
        cli.warn("the tokenizer has no end-of-sequence token, so the model will not learn where documents end")


def _report(settings: PrepareSettings, ledger: dict[str, Any]) -> None:
    sums = ledger["totals"]
    cli.say(
        f"{sums['documents']:,} documents, {sums['tokens']:,} tokens in; {sums['rows']:,} rows of up to "
        f"{settings.splicing.max_length}, {sums['tokens_in_rows']:,} tokens out, {sums['learned_tokens']:,} learned; "
        f"fill {sums['fill']:.2%}, {sums['documents_cut']:,} documents cut, none truncated"
    )
    said = {
        "duplicates": "left out as duplicates",
        "thinned": "left out by --category_weights",
        "repeated": "repeated by --category_weights",
        "held_out": f"held out in {settings.data_arrow_output_dir / HOLDOUT_DIR}",
    }
    for name, what in said.items():
        if sums[name]["documents"]:
            cli.say(f"{sums[name]['documents']:,} documents, {sums[name]['tokens']:,} tokens {what}")
    if sums["refused_lines"]:
        cli.say(f"{sums['refused_lines']:,} lines were refused; {REFUSED_FILE} beside {MANIFEST} lists them")
    cli.say(f"{ledger['num_buckets']} buckets in {settings.data_arrow_output_dir}")


if __name__ == "__main__":
    cli.run(PrepareSettings, main)
