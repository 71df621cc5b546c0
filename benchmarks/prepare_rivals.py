"""What the preparation is measured against, each a process of its own that prints what it made as a line of json.

    python benchmarks/prepare_rivals.py --way upstream|naive|encoder --corpus_dir DIR --tokenizer_dir DIR --work_dir DIR

``upstream``: the algorithm of ColossalAI's Colossal-LLaMA, told anew: records divided over the bins by their place in
each file; each tokenised on its own, text and source apart, and cut off at the row's length; sorted by category and
length; laid behind one another in buffers of eight rows, where a document that does not fit begins the next row and
what is left at the end of a buffer is dropped; written as jsonl, and from that as Arrow. ``naive``: read, encode, write
the tokens into full rows, nothing counted and nothing spread. ``encoder``: the encoder alone, on texts that lie in
memory; its seconds are those of encoding.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import orjson
import pyarrow as pa

from colossal_llama2 import cli
from colossal_llama2.tokenizer.loading import EncoderKind, load_encoder

_ROWS_A_BUFFER = 8
_CHARACTERS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class RivalSettings:
    """Prepare a corpus in another way."""

    way: Literal["upstream", "naive", "encoder"]
    """What is done."""
    corpus_dir: Path
    """Folder of jsonl."""
    tokenizer_dir: Path
    """Tokenizer."""
    work_dir: Path
    """Where it is written, and where `datasets` keeps its cache."""
    max_length: int = 4096
    """Tokens a row can hold."""
    bins: int = 10
    """Buckets of upstream's way."""
    encoder: EncoderKind = "auto"
    """What encodes in the other two."""
    threads: int = 2
    """Threads of the encoder, processes of upstream's way."""


@dataclass
class Made:
    """What came of it; `seconds` only where the process's own do not count."""

    tokens_in: int = 0
    tokens_out: int = 0
    rows: int = 0
    seconds: float | None = None


def main(settings: RivalSettings) -> None:
    """Do it and print the counts."""
    ways: dict[str, Callable[[RivalSettings], Made]] = {"upstream": _upstream, "naive": _naive, "encoder": _encoder}
    print(json.dumps(vars(ways[settings.way](settings))))


def _files(settings: RivalSettings) -> list[Path]:
    return sorted(settings.corpus_dir.rglob("*.jsonl"))


def _texts(settings: RivalSettings) -> Iterator[str]:
    for path in _files(settings):
        with path.open("rb") as file:
            for line in filter(bytes.strip, file):
                record = orjson.loads(line)
                yield record.get("source", "") + (record["target"] if "target" in record else record["text"])


def _groups(texts: Iterator[str]) -> Iterator[list[str]]:
    group: list[str] = []
    held = 0
    for text in texts:
        group.append(text)
        held += len(text)
        if held >= _CHARACTERS_AT_ONCE:
            yield group
            group, held = [], 0
    if group:
        yield group


def _encoder(settings: RivalSettings) -> Made:
    encoder = load_encoder(settings.tokenizer_dir, settings.threads, settings.encoder)
    groups = list(_groups(_texts(settings)))
    begun = time.perf_counter()
    tokens = sum(len(encoder.encode(group).ids) + 2 * len(group) for group in groups)
    return Made(tokens, tokens, 0, time.perf_counter() - begun)


def _naive(settings: RivalSettings) -> Made:
    encoder = load_encoder(settings.tokenizer_dir, settings.threads, settings.encoder)
    made = Made()
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    schema = pa.schema({"input_ids": pa.list_(pa.int32())})
    rest = np.zeros(0, dtype=np.int32)
    with pa.ipc.new_stream(str(settings.work_dir / "naive.arrow"), schema) as out:

        def write(tokens: Any) -> None:
            lengths = [settings.max_length] * (len(tokens) // settings.max_length)
            lengths += [len(tokens) % settings.max_length] if len(tokens) % settings.max_length else []
            offsets = pa.array(np.cumsum([0, *lengths]).astype(np.int32))
            column = pa.ListArray.from_arrays(offsets, pa.array(tokens))
            out.write_batch(pa.record_batch([column], schema=schema))
            made.rows += len(lengths)
            made.tokens_out += len(tokens)

        for group in _groups(_texts(settings)):
            encoded = encoder.encode(group)
            around = np.tile([encoder.bos_token_id or 0, encoder.eos_token_id or 0], len(group))
            ids = np.insert(encoded.ids, np.repeat(encoded.offsets, 2)[1:-1], around)
            made.tokens_in += len(ids)
            tokens = np.concatenate([rest, ids]).astype(np.int32)
            full = len(tokens) // settings.max_length * settings.max_length
            if full:
                write(tokens[:full])
            rest = tokens[full:]
        if len(rest):
            write(rest)
    return made


def _upstream(settings: RivalSettings) -> Made:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(str(settings.tokenizer_dir))
    cache = str(settings.work_dir / "cache")
    step = math.ceil(100 / settings.bins)
    shares = [f"train[{first}%:{min(first + step, 100)}%]" for first in range(0, 100, step)]
    files = [str(path) for path in _files(settings)]
    options: dict[str, Any] = {"cache_dir": cache, "keep_in_memory": False, "num_proc": settings.threads}
    bins = load_dataset("json", data_files=files, split=shares, **options)
    tokenise = partial(_tokenise, tokenizer=tokenizer, max_length=settings.max_length)
    made = Made()
    for number, records in enumerate(bins):
        if not len(records):
            continue
        processes = min(len(records), settings.threads)
        mapped = records.map(tokenise, keep_in_memory=False, num_proc=processes)
        made.tokens_in += sum(mapped["tokens_before"])
        mapped = mapped.sort(("seq_category", "seq_length")).select_columns(["input_ids", "labels"])
        jsonl = settings.work_dir / f"part-{number:05d}.jsonl"
        rows = 0
        with jsonl.open("w", encoding="utf-8") as out:
            for row in _splice(mapped, settings.max_length):
                out.write(json.dumps(row) + "\n")
                rows += 1
                made.tokens_out += len(row["input_ids"])
        made.rows += rows
        if rows:
            spliced = load_dataset("json", data_files=[str(jsonl)], split="train", **options)
            # In this process, to upstream's favour: newer versions of `datasets` start anew the processes they save
            # with, which costs seconds a bin.
            spliced.save_to_disk(str(settings.work_dir / f"part-{number:05d}"))
    return made


def _tokenise(record: dict[str, Any], tokenizer: Any, max_length: int) -> dict[str, Any]:
    source = tokenizer.bos_token + record["source"]
    both = source + record["target"] + tokenizer.eos_token
    source_ids, ids = tokenizer([source, both], add_special_tokens=False)["input_ids"]
    seen = len(source_ids) if record["source"] else 0
    kept = ids[:max_length]
    return {
        "input_ids": kept,
        "labels": ([-100] * seen + ids[seen:])[:max_length],
        "seq_length": len(kept),
        "seq_category": record["category"],
        "tokens_before": len(ids),
    }


def _splice(records: Any, max_length: int) -> Iterator[dict[str, list[int]]]:
    """Yield rows; of every buffer but the last, the row that is still open is lost."""
    waiting = iter(records)
    ended = False
    while not ended:
        rows: list[dict[str, list[int]]] = []
        ids: list[int] = []
        labels: list[int] = []
        held = 0
        while held < _ROWS_A_BUFFER * max_length:
            record = next(waiting, None)
            if record is None:
                ended = True
                break
            held += len(record["input_ids"])
            if len(ids) + len(record["input_ids"]) > max_length:
                rows.append({"input_ids": ids, "labels": labels})
                ids, labels = [], []
            ids = ids + record["input_ids"]
            labels = labels + record["labels"]
        if ended and ids:
            rows.append({"input_ids": ids, "labels": labels})
        random.shuffle(rows)
        yield from rows


if __name__ == "__main__":
    cli.run(RivalSettings, main)
