"""Corpora made by hand for this room: through the command, or with token ids that name their document and place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from colossal_llama2.dataset.encoded import DOCUMENT, EncodedShard, ShardWriter
from colossal_llama2.dataset.planning import Plan, Selection, make_plan
from colossal_llama2.dataset.preparation import PrepareSettings
from colossal_llama2.dataset.prepare_pretrain_dataset import main
from colossal_llama2.dataset.rows import BucketJob, write_bucket
from colossal_llama2.dataset.splicing import Cutting

BOS = 99_998  # no document here is as long
PLACES = 100_000  # token id = document * PLACES + place in the document


@dataclass(frozen=True)
class Prepared:
    """What a run of the command left."""

    settings: PrepareSettings

    @property
    def manifest(self) -> dict[str, Any]:
        """The ledger."""
        ledger: dict[str, Any] = json.loads((self.settings.data_arrow_output_dir / "manifest.json").read_text())
        return ledger

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The records of one of the ledger's jsonl files."""
        text = (self.settings.data_arrow_output_dir / name).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def rows(self) -> list[list[dict[str, list[int]]]]:
        """Rows of every bucket, read with pyarrow alone."""
        return read_parts(self.settings.data_arrow_output_dir)

    def pieces(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """(ids, labels) of every piece of a document."""
        found = []
        for row in (row for bucket in self.rows() for row in bucket):
            begin = 0
            for length in row["seq_lens"]:
                end = begin + length
                found.append((tuple(row["input_ids"][begin:end]), tuple(row["labels"][begin:end])))
                begin = end
            assert begin == len(row["input_ids"]) == len(row["labels"])
        return found

    def outputs(self) -> dict[str, bytes]:
        """Every output file but the settings, which name places, by name."""
        folders = {"arrow": self.settings.data_arrow_output_dir, "jsonl": self.settings.data_jsonl_output_dir}
        return {
            f"{name}/{path.relative_to(folder)}": path.read_bytes()
            for name, folder in folders.items()
            if folder is not None
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "settings.yaml"
        }


def read_parts(folder: Path) -> list[list[dict[str, list[int]]]]:
    """Rows of every part of a folder, read with pyarrow alone."""
    files = sorted(folder.glob("part-*/data-00000-of-00001.arrow"))
    return [pa.ipc.open_stream(file.read_bytes()).read_all().to_pylist() for file in files]


def change(settings: Any, options: dict[str, Any]) -> Any:
    """Change options wherever among the groups of the settings they stand; take out those that were found."""
    changed = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in options:
            changed[field.name] = options.pop(field.name)
        elif is_dataclass(value):
            changed[field.name] = change(value, options)
    return replace(settings, **changed)


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    """Write records as jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def settings_for(llama_tokenizer_dir: Path) -> Callable[..., PrepareSettings]:
    """Give a function: folder and records to settings of a small run in that folder, one worker."""

    def make(work: Path, records: Sequence[dict[str, Any]] | None = None, **options: Any) -> PrepareSettings:
        if records is not None:
            write_records(work / "in" / "data.jsonl", records)
        settings = PrepareSettings(
            data_input_dirs=str(work / "in"),
            tokenizer_dir=llama_tokenizer_dir,
            data_cache_dir=work / "cache",
            data_jsonl_output_dir=work / "jsonl",
            data_arrow_output_dir=work / "arrow",
        )
        wanted = {"max_length": 32, "num_spliced_dataset_bins": 1, "num_workers": 1, **options}
        settings = change(settings, wanted)
        assert not wanted, "every option is known"
        return settings

    return make


@pytest.fixture(scope="session")
def prepare(settings_for: Callable[..., PrepareSettings]) -> Callable[..., Prepared]:
    """Give a function that runs the command on records."""

    def run(work: Path, records: Sequence[dict[str, Any]] | None = None, **options: Any) -> Prepared:
        settings = settings_for(work, records, **options)
        main(settings)
        return Prepared(settings)

    return run


@dataclass(frozen=True)
class Numbered:
    """Documents whose token ids say where they belong, spread over shards.

    Attributes:
        tokens: tokens of each document.
        unlearned: leading tokens of each that are not learned.
        categories: category number of each.
        shards: their encoded shards.
    """

    tokens: list[int]
    unlearned: list[int]
    categories: list[int]
    shards: list[EncodedShard]

    def learned(self, max_length: int) -> set[int]:
        """The ids that must be learned, by the rule told in words: all but bos, source and firsts of pieces."""
        return {
            document * PLACES + place
            for document, (length, first) in enumerate(zip(self.tokens, self.unlearned, strict=True))
            for place in range(first, length)
            if place % max_length
        }

    def all_ids(self) -> list[int]:
        """Every token once, by document and place."""
        return [document * PLACES + place for document, length in enumerate(self.tokens) for place in range(length)]


@pytest.fixture(scope="session")
def numbered_documents() -> Callable[..., Numbered]:
    """Give a function: folder and (tokens, unlearned, category) of documents to encoded shards of three each."""

    def make(folder: Path, documents: Sequence[tuple[int, int, int]], per_shard: int = 3) -> Numbered:
        shards = []
        for first in range(0, len(documents), per_shard):
            members = list(enumerate(documents))[first : first + per_shard]
            names = sorted({f"category {category}" for _, (_, _, category) in members})
            table = np.zeros(len(members), dtype=DOCUMENT)
            for row, (_, (tokens, unlearned, category)) in zip(table, members, strict=True):
                row["tokens"], row["unlearned"], row["characters"] = tokens, unlearned, 3 * tokens
                row["bytes"], row["category"] = 4 * tokens, names.index(f"category {category}")
            ids = [number * PLACES + place for number, (tokens, _, _) in members for place in range(tokens)]
            home = folder / f"shard-{first}"
            home.mkdir(parents=True)
            with ShardWriter(home, f"hash {first}") as writer:
                for name in names:
                    writer.number_of(name)
                writer.add_tokens(np.array(ids, dtype=np.int32))
                writer.add_documents(table, None)
                writer.end_segment(len(table))
                shards.append(writer.finish([]))
        columns = [[document[column] for document in documents] for column in range(3)]
        return Numbered(columns[0], columns[1], columns[2], shards)

    return make


@dataclass(frozen=True)
class Written:
    """A plan of numbered documents, and what was written of it."""

    plan: Plan
    arrow_dir: Path
    results: list[Any]

    def rows(self) -> list[list[dict[str, list[int]]]]:
        """Rows of every bucket, read with pyarrow alone."""
        return read_parts(self.arrow_dir)


@pytest.fixture(scope="session")
def write_numbered() -> Callable[..., Written]:
    """Give a function: folder, numbered documents and how to divide them to written buckets."""

    def make(
        work: Path,
        numbered: Numbered,
        num_buckets: int,
        max_length: int,
        seed: int = 0,
        how: str = "best_fit",
        cutting: Cutting | None = None,
        **selected: Any,
    ) -> Written:
        folder, arrow, jsonl = work / f"plan-{seed}", work / f"arrow-{seed}", work / f"jsonl-{seed}"
        for path in (folder, arrow, jsonl):
            path.mkdir(parents=True)
        num_categories = len({name for shard in numbered.shards for name in shard.categories})
        chosen = {"weights": np.ones(num_categories), "holdout": 0.0, **selected}
        plan = make_plan(numbered.shards, None, Selection(num_buckets, max_length, seed, **chosen), folder)
        results = [
            write_bucket(
                BucketJob(
                    bucket,
                    bucket,
                    plan.member_file(bucket),
                    arrow,
                    jsonl,
                    num_categories,
                    how,  # type: ignore[arg-type]
                    cutting or Cutting(max_length),
                    BOS,
                    seed,
                )
            )
            for bucket in range(num_buckets)
        ]
        return Written(plan, arrow, results)

    return make


@pytest.fixture(scope="session")
def numbered_corpus(
    numbered_documents: Callable[..., Numbered], write_numbered: Callable[..., Written]
) -> Callable[..., tuple[Path, Numbered]]:
    """Give a function: folder, documents, buckets and row length to a prepared corpus of numbered documents."""

    def make(
        work: Path, documents: Sequence[tuple[int, int, int]], num_buckets: int, max_length: int, fingerprint: str = "t"
    ) -> tuple[Path, Numbered]:
        numbered = numbered_documents(work / "encoded", documents)
        written = write_numbered(work, numbered, num_buckets, max_length)
        buckets = [
            {"bucket": bucket.bucket, "rows": bucket.rows, "arrow_sha256": bucket.arrow_sha256}
            for bucket, _ in written.results
        ]
        for bucket in buckets:
            path = written.arrow_dir / f"part-{bucket['bucket']:05d}" / "data-00000-of-00001.arrow"
            assert bucket["arrow_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        tokenizer = {"fingerprint": fingerprint, "bos_token_id": 1, "eos_token_id": 2}
        manifest = {"version": 2, "max_length": max_length, "tokenizer": tokenizer, "buckets": buckets}
        (written.arrow_dir / "manifest.json").write_text(json.dumps(manifest))
        return written.arrow_dir, numbered

    return make


@pytest.fixture(scope="session")
def chat_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a byte-level tokenizer with the markers of chat templates, one of which swallows blanks behind it."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    folder = tmp_path_factory.mktemp("chat_tokenizer")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = ["the quick brown fox\n\n", "user assistant system\n", "你好 世界", "<|im_end|> </s> [INST] <s>"] * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    names = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False, rstrip=True, lstrip=True)])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def piece_chat_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, piece_model_bytes: Callable[..., bytes]) -> Path:
    """Give a SentencePiece tokenizer with the markers of ChatML beyond its pieces."""
    folder = tmp_path_factory.mktemp("piece_chat_tokenizer")
    (folder / "tokenizer.model").write_bytes(piece_model_bytes())
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "extra_special_tokens": ["<|im_start|>", "<|im_end|>"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
