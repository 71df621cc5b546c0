"""The command: what it writes is all that there was, in the form promised, whoever works on it and where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from colossal_llama2 import cli
from colossal_llama2.dataset.prepare_pretrain_dataset import PrepareSettings

TINY = [{"target": f"the fox {number}", "category": "ab"[number % 2]} for number in range(12)]
Prepare = Callable[..., Any]


def chunks(ids: list[int], max_length: int) -> list[tuple[int, ...]]:
    return [tuple(ids[begin : begin + max_length]) for begin in range(0, len(ids), max_length)]


@pytest.fixture(scope="module")
def processor(llama_tokenizer_dir: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(llama_tokenizer_dir / "tokenizer.model"))


def test_it_writes_parts_jsonl_ledger_and_settings(tmp_path: Path, prepare: Prepare) -> None:
    import datasets

    prepared = prepare(tmp_path, TINY, num_spliced_dataset_bins=3)
    names = {path.name for path in prepared.settings.data_arrow_output_dir.iterdir()}
    ledger = {"manifest.json", "files.jsonl", "refused_records.jsonl", "settings.yaml"}
    assert names == {"part-00000", "part-00001", "part-00002", *ledger}
    for bucket, rows in enumerate(prepared.rows()):
        lines = (tmp_path / "jsonl" / f"part-{bucket:05d}.jsonl").read_text().splitlines()
        dataset = datasets.load_from_disk(str(tmp_path / "arrow" / f"part-{bucket:05d}"))
        assert len(rows) > 0
        assert [json.loads(line) for line in lines] == rows == [dict(row) for row in dataset]
        assert max(len(row["input_ids"]) for row in rows) <= 32
    written = cli.parse(PrepareSettings, ["--config", str(tmp_path / "arrow" / "settings.yaml")])
    assert written == prepared.settings
    assert prepared.manifest["num_buckets"] == 3


def test_nothing_is_lost_between_the_text_and_the_rows(
    tmp_path: Path, prepare: Prepare, processor: SentencePieceProcessor
) -> None:
    short = [("the fox" * (n % 4), "</s> 今天 the dog " * (n % 9 + 1), f"{n % 3}") for n in range(50)]
    long_source = "the lazy dog " * 40
    texts = [*short, (long_source, "jumps", "long")]
    records = [{"source": source, "target": target, "category": name} for source, target, name in texts]
    prepared = prepare(tmp_path, records, max_length=20, num_spliced_dataset_bins=4)
    pieces = prepared.pieces()
    documents = [[1, *processor.encode(source + target), 2] for source, target, _ in texts]
    assert Counter(ids for ids, _ in pieces) == Counter(chunk for ids in documents for chunk in chunks(ids, 20))
    assert all(labels[0] == -100 for _, labels in pieces)
    assert all(label in (-100, token) for ids, labels in pieces for token, label in zip(ids, labels, strict=True))
    # Without a source everything but the first token of each piece is learned.
    plain = {
        chunk for (source, _, _), ids in zip(texts, documents, strict=True) if not source for chunk in chunks(ids, 20)
    }
    learned = [(ids, labels) for ids, labels in pieces if ids in plain]
    assert len(learned) >= len(plain) > 10
    assert all(labels[1:] == ids[1:] for ids, labels in learned)
    # Of a source that is longer than several rows nothing is learned, and the target behind it is.
    category = prepared.manifest["categories"]["long"]
    seam = len(processor.encode(long_source))
    assert seam > 100
    assert abs(category["not_learned"]["source"] - seam) <= 2  # a token across the seam, the trailing space
    assert 2 <= category["learned_tokens"] <= len(documents[-1]) - seam + 1
    assert sum(bucket["rows_without_learned_tokens"] for bucket in prepared.manifest["buckets"]) >= 3


def test_a_document_of_a_million_characters(
    tmp_path: Path, prepare: Prepare, processor: SentencePieceProcessor
) -> None:
    text = ("the quick brown fox 今天天气 " * 40_000)[:1_000_000]
    prepared = prepare(tmp_path, [{"target": text}, *TINY], max_length=512, num_spliced_dataset_bins=3)
    assert prepared.manifest["totals"]["characters"] > 1_000_000
    ids = [1, *processor.encode(text), 2]
    assert len(ids) > 100_000
    found = Counter(ids for ids, _ in prepared.pieces())
    assert not Counter(chunks(ids, 512)) - found
    # It lies in one bucket whole, and the small ones fill the others.
    holding = [number for number, rows in enumerate(prepared.rows()) if sum(len(r["input_ids"]) for r in rows) > 10_000]
    assert len(holding) == 1
    assert min(bucket["documents"] for bucket in prepared.manifest["buckets"]) >= 1


def test_ten_thousand_tiny_documents(tmp_path: Path, prepare: Prepare) -> None:
    records = [{"target": "abcdefghij"[n % 10], "category": f"c{n % 7}"} for n in range(10_000)]
    prepared = prepare(tmp_path, records, max_length=2048, num_spliced_dataset_bins=7)
    ledger = prepared.manifest
    assert (
        ledger["totals"]["documents"] == sum(len(row["seq_lens"]) for rows in prepared.rows() for row in rows) == 10_000
    )
    assert ledger["totals"]["fill"] > 0.8
    for category in ledger["categories"].values():
        counts = category["documents_per_bucket"]
        assert max(counts) - min(counts) <= 1


def test_output_does_not_depend_on_workers_or_place(tmp_path: Path, prepare: Prepare) -> None:
    records = [{"target": "the fox 今天 " * (n % 13 + 1), "category": str(n % 3)} for n in range(60)]
    outputs = [
        prepare(tmp_path / place, records, num_workers=workers, num_spliced_dataset_bins=3).outputs()
        for place, workers in (("one", 1), ("deeper/two", 2))
    ]
    assert len(outputs[0]) == 3 * 4 + 3
    assert outputs[0] == outputs[1]
    again = prepare(tmp_path / "one", seed=7, num_spliced_dataset_bins=3, overwrite=True).outputs()
    assert again.keys() == outputs[0].keys()
    assert again != outputs[0]


def test_bad_records_can_be_skipped_and_are_listed(tmp_path: Path, prepare: Prepare) -> None:
    lines = ['{"target": "the"}', "{", "", '{"source": "x"}', '{"target": ""}', '{"target": "fox"}']
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    (tmp_path / "in" / "empty.jsonl").write_text("")
    (tmp_path / "in" / "note.txt").write_text("")
    prepared = prepare(tmp_path, bad_records="skip")
    ledger, refused = prepared.manifest, prepared.lines("refused_records.jsonl")
    assert [(refusal["file"], refusal["line"]) for refusal in refused] == [
        ("in/deep/a.jsonl", 2),
        ("in/deep/a.jsonl", 4),
        ("in/deep/a.jsonl", 5),
    ]
    assert "not JSON" in refused[0]["reason"]
    assert (ledger["totals"]["documents"], ledger["totals"]["refused_lines"]) == (2, 3)
    assert [file["file"] for file in prepared.lines("files.jsonl")] == ["in/deep/a.jsonl", "in/empty.jsonl"]
    assert ledger["ignored_files"] == ["in/note.txt"]


def test_the_manifest_names_no_place_of_this_machine(tmp_path: Path, prepare: Prepare) -> None:
    prepare(tmp_path, TINY)
    assert str(tmp_path) not in (tmp_path / "arrow" / "manifest.json").read_text()


def test_as_many_buckets_as_documents(tmp_path: Path, prepare: Prepare) -> None:
    prepared = prepare(tmp_path, TINY, num_spliced_dataset_bins=len(TINY))
    assert [bucket["documents"] for bucket in prepared.manifest["buckets"]] == [1] * len(TINY)
