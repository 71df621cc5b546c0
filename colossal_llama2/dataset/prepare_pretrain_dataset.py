"""`tools/prepare_pretrain_dataset.py`: jsonl corpora to spliced rows in balanced buckets, every token accounted for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from colossal_llama2 import cli
from colossal_llama2.dataset.encoding import EncodedShard, EncodingJob, count_records, encode_shard, tokenizer_key
from colossal_llama2.dataset.inputs import InputFile, Shard, find_inputs, split_into_shards
from colossal_llama2.dataset.ledger import (
    MANIFEST,
    VERSION,
    WrittenBucket,
    balance,
    bucket_ledger,
    category_ledger,
    file_ledger,
    write_manifest,
)
from colossal_llama2.dataset.parts import IGNORED, PartWriter
from colossal_llama2.dataset.planning import BucketJob, build_rows, gather, plan_buckets
from colossal_llama2.dataset.workers import run_all, worker_pool
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import refuse_existing, whole_directory
from colossal_llama2.tokenizer.loading import Encoder, EncoderKind, load_encoder

_WORTH_LOADING = 64 << 20  # bytes; below, loading and proving gigatoken takes longer than encoding without it
MAX_BINS = 100_000
MAX_LENGTH = 1 << 22  # a block of rows is addressed with 32 bits


@dataclass(frozen=True)
class PrepareSettings:
    """Encode, splice and bucket jsonl corpora for continued pretraining.

    A record is {"source": "...", "target": "...", "category": "..."}: the target is learned, the source is seen, the
    category names the sub-dataset and is spread over all buckets.
    """

    data_input_dirs: str
    """Folders (searched in depth for .jsonl) or single files, separated by commas."""
    tokenizer_dir: Path
    """Tokenizer folder, or a model folder with its tokenizer inside."""
    data_cache_dir: Path = Path("jsonl_to_arrow_cache")
    """Encoded shards are kept here; a second run over the same text takes them up again."""
    data_jsonl_output_dir: Path = Path("spliced_tokenized_output_jsonl")
    """The spliced rows as jsonl, one file a bucket."""
    data_arrow_output_dir: Path = Path("spliced_tokenized_output_arrow")
    """The spliced rows as Arrow, one folder a bucket, and manifest.json: what train.py reads."""
    max_length: int = 4096
    """Tokens a row can hold; longer documents go on in further rows of the same bucket."""
    num_spliced_dataset_bins: int = 10
    """Number of buckets."""
    seed: int = 42
    """Decides the order of rows inside a bucket."""
    num_workers: int = 0
    """Worker processes; 0 takes one a processor. The output does not depend on it."""
    encoder: EncoderKind = "auto"
    """What makes tokens of text: the tokenizer's reference library, gigatoken where that is proved to give the same,
    or auto: gigatoken where it is worth loading. The output does not depend on it."""
    bad_records: Literal["error", "skip"] = "error"
    """What to do with a line that is not a record: stop and name it, or pass it over and list it in the ledger."""
    overwrite: bool = False
    """Replace existing outputs."""


def main(settings: PrepareSettings) -> None:
    """Prepare the corpus; both output folders appear when everything is written and the ledger balances."""
    files, ignored, encoder = _check(settings)
    shards = split_into_shards(files)
    with worker_pool(settings.num_workers) as pool:
        counted = partial(count_records, skip_bad_records=settings.bad_records == "skip")
        _refuse_too_few(settings, sum(run_all(pool, counted, shards, "checking")))
        _warn(ignored, encoder)
        encoder = _faster(settings, files, encoder)
        encoded = _encode(settings, shards, encoder, pool)
        corpus = gather(encoded)
        jobs, buckets = plan_buckets(corpus, settings.num_spliced_dataset_bins, settings.max_length, settings.seed)
        with (
            whole_directory(settings.data_jsonl_output_dir, settings.overwrite) as jsonl_dir,
            whole_directory(settings.data_arrow_output_dir, settings.overwrite) as arrow_dir,
        ):
            write = partial(_write_bucket, arrow_dir=arrow_dir, jsonl_dir=jsonl_dir)
            written = run_all(pool, write, jobs, "writing buckets")
            ledger: dict[str, Any] = {
                **_heading(settings, encoder),
                "files": file_ledger(files, shards, encoded),
                "ignored_files": ignored,
                "categories": category_ledger(corpus, buckets, len(jobs), settings.max_length),
                "buckets": bucket_ledger(corpus, buckets, written, settings.max_length),
                "refused_records": [asdict(refusal) for entry in encoded for refusal in entry.refusals],
            }
            ledger["totals"] = _totals(ledger)
            balance(ledger, written)
            write_manifest(ledger, arrow_dir)
            for folder in (arrow_dir, jsonl_dir):
                (folder / "settings.yaml").write_text(cli.as_yaml(settings), encoding="utf-8")
    _report(settings, ledger)


def _check(settings: PrepareSettings) -> tuple[list[InputFile], list[str], Encoder]:
    """Refuse what cannot work before anything is written."""
    if not 2 <= settings.max_length <= MAX_LENGTH:
        raise InputError(
            f"--max_length is {settings.max_length}",
            remedy=f"give 2 (one token predicts the next) to {MAX_LENGTH}",
        )
    if not 1 <= settings.num_spliced_dataset_bins <= MAX_BINS:
        raise InputError(
            f"--num_spliced_dataset_bins is {settings.num_spliced_dataset_bins}", remedy=f"give 1 to {MAX_BINS}"
        )
    if settings.num_workers < 0 or settings.seed < 0:
        raise InputError("--num_workers and --seed cannot be negative", remedy="give 0 or more")
    entries = cli.comma_separated(settings.data_input_dirs)
    if not entries:
        raise InputError("--data_input_dirs names nothing", remedy="name folders or jsonl files, separated by commas")
    files, ignored = find_inputs(entries)
    encoder = load_encoder(settings.tokenizer_dir, kind="gigatoken" if settings.encoder == "gigatoken" else "reference")
    for folder in (settings.data_arrow_output_dir, settings.data_jsonl_output_dir):
        refuse_existing(folder, settings.overwrite)
    _refuse_nested(settings, entries)
    if encoder.bos_token_id is None and encoder.eos_token_id is None:
        raise InputError(
            "has neither a beginning-of-sequence nor an end-of-sequence token, so documents would run together",
            path=settings.tokenizer_dir,
            remedy="name eos_token in its tokenizer_config.json",
        )
    return files, ignored, encoder


def _faster(settings: PrepareSettings, files: Sequence[InputFile], encoder: Encoder) -> Encoder:
    """Load gigatoken, as every worker will, for a corpus that takes longer to encode without it."""
    if settings.encoder != "auto" or sum(file.num_bytes for file in files) < _WORTH_LOADING:
        return encoder
    return load_encoder(settings.tokenizer_dir, kind="auto")


def _warn(ignored: Sequence[str], encoder: Encoder) -> None:
    """Say what may surprise; only once nothing can be refused any more, so that a refusal is one line."""
    if ignored:
        cli.warn(
            f"{len(ignored)} files are not .jsonl and were passed over: {', '.join(ignored[:3])}"
            + " ..." * (len(ignored) > 3)
        )
    if encoder.eos_token_id is None:
        cli.warn("the tokenizer has no end-of-sequence token, so the model will not learn where documents end")


def _refuse_nested(settings: PrepareSettings, entries: Sequence[str]) -> None:
    """Refuse an output that something else lies in: it is replaced as a whole, with everything inside."""
    arrow, jsonl = settings.data_arrow_output_dir, settings.data_jsonl_output_dir
    if arrow.resolve() == jsonl.resolve():
        raise InputError("both outputs go to one folder", path=arrow, remedy="name two")
    others = [*map(Path, entries), settings.tokenizer_dir, settings.data_cache_dir, arrow, jsonl]
    for output in (arrow, jsonl):
        for other in others:
            if other is not output and other.resolve().is_relative_to(output.resolve()):
                raise InputError(f"{other} lies in this output", path=output, remedy="name a folder of its own")
        for entry in map(Path, entries):
            if output.resolve().is_relative_to(entry.resolve()):
                what = f"lies in the input {entry} and would be read with it the next time"
                raise InputError(what, path=output, remedy="name a folder outside the input")


def _encode(
    settings: PrepareSettings, shards: Sequence[Shard], encoder: Encoder, pool: ProcessPoolExecutor | None
) -> list[EncodedShard]:
    cache_dir = settings.data_cache_dir
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be created ({error.strerror})", path=cache_dir, remedy="name another --data_cache_dir"
        ) from None
    job = EncodingJob(
        settings.tokenizer_dir,
        tokenizer_key(settings.tokenizer_dir, encoder),
        cache_dir,
        settings.bad_records == "skip",
        "reference" if encoder.proof is None else "auto",
        encoder.proof,
    )
    return run_all(pool, partial(encode_shard, job=job), shards, "encoding")


def _refuse_too_few(settings: PrepareSettings, documents: int) -> None:
    bins = settings.num_spliced_dataset_bins
    if not documents:
        raise InputError("holds no record", path=settings.data_input_dirs, remedy="name folders with records in them")
    if documents < bins:
        raise InputError(
            f"{documents} documents cannot fill {bins} buckets, and a document stays in one",
            path=settings.data_input_dirs,
            remedy=f"pass --num_spliced_dataset_bins {documents} or fewer",
        )


def _write_bucket(job: BucketJob, arrow_dir: Path, jsonl_dir: Path) -> WrittenBucket:
    """Write one bucket and count it from the rows that are written."""
    rows = tokens = learned = pieces = empty = 0
    with PartWriter(arrow_dir, jsonl_dir, job.bucket) as writer:
        for row in build_rows(job):
            writer.write(row)
            learned_here = int((row.labels != IGNORED).sum())
            rows, tokens, pieces = rows + 1, tokens + len(row.input_ids), pieces + len(row.seq_lens)
            learned, empty = learned + learned_here, empty + (learned_here == 0)
    return WrittenBucket(job.bucket, rows, tokens, learned, pieces, empty, writer.content_hash())


def _heading(settings: PrepareSettings, encoder: Encoder) -> dict[str, Any]:
    deciding = [VERSION, settings.max_length, settings.num_spliced_dataset_bins, settings.seed, settings.bad_records]
    return {
        "version": VERSION,
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
    }


def _totals(ledger: dict[str, Any]) -> dict[str, Any]:
    names = ("documents", "characters", "text_bytes", "tokens", "refused_lines")
    totals: dict[str, Any] = {name: sum(file[name] for file in ledger["files"]) for name in names}
    totals["learned_tokens"] = sum(bucket["learned_tokens"] for bucket in ledger["buckets"])
    totals["rows"] = sum(bucket["rows"] for bucket in ledger["buckets"])
    totals["documents_cut"] = sum(category["documents_cut"] for category in ledger["categories"].values())
    totals["fill"] = round(totals["tokens"] / (totals["rows"] * ledger["max_length"]), 6)
    return totals


def _report(settings: PrepareSettings, ledger: dict[str, Any]) -> None:
    totals = ledger["totals"]
    cli.say(
        f"{totals['documents']:,} documents, {totals['tokens']:,} tokens in; {totals['rows']:,} rows of up to "
        f"{settings.max_length}, {totals['tokens']:,} tokens out, {totals['learned_tokens']:,} learned; "
        f"fill {totals['fill']:.2%}, {totals['documents_cut']:,} documents cut, none truncated"
    )
    if totals["refused_lines"]:
        cli.say(f"{totals['refused_lines']:,} lines were refused; {MANIFEST} lists them with file, line and reason")
    cli.say(f"{ledger['num_buckets']} buckets in {settings.data_arrow_output_dir}")


if __name__ == "__main__":
    cli.run(PrepareSettings, main)
