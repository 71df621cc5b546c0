"""The ledger against a recount by code that shares nothing with it, and its refusal of sums that differ."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from colossal_llama2.dataset.ledger import UnbalancedError, balance

MAX_LENGTH = 16


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    draw = random.Random(1)
    words = ["the", "fox", "今天", "7", "龘"]
    return [
        {
            "source": " ".join(draw.choices(words, k=draw.choice([0, 0, 3, 40]))),
            "target": " ".join(draw.choices(words, k=draw.choice([1, 4, 30]))),
            "category": draw.choice("abc"),
        }
        for _ in range(60)
    ]


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], prepare: Callable[..., Any]
) -> Any:
    work = tmp_path_factory.mktemp("ledger")
    return prepare(work, records, max_length=MAX_LENGTH, num_spliced_dataset_bins=3)


def test_sums_are_those_of_the_input(prepared: Any, records: list[dict[str, Any]], llama_tokenizer_dir: Path) -> None:
    processor = SentencePieceProcessor(model_file=str(llama_tokenizer_dir / "tokenizer.model"))
    texts = [record["source"] + record["target"] for record in records]
    lengths = [len(processor.encode(text)) + 2 for text in texts]
    ledger = prepared.manifest
    assert ledger["totals"]["documents"] == len(records)
    assert ledger["totals"]["tokens"] == sum(lengths)
    assert ledger["totals"]["characters"] == sum(map(len, texts))
    assert ledger["totals"]["text_bytes"] == sum(len(text.encode()) for text in texts)
    assert ledger["totals"]["documents_cut"] == sum(length > MAX_LENGTH for length in lengths) > 0
    assert set(ledger["categories"]) == {record["category"] for record in records}
    for name, entry in ledger["categories"].items():
        own = [number for number, record in enumerate(records) if record["category"] == name]
        assert entry["documents"] == len(own) == sum(entry["documents_per_bucket"])
        assert entry["tokens"] == sum(lengths[number] for number in own) == sum(entry["tokens_per_bucket"])
        assert entry["read"] == {
            "documents": len(own),
            "characters": sum(len(texts[number]) for number in own),
            "tokens": entry["tokens"],
        }
        assert entry["tokens"] - sum(entry["not_learned"].values()) == entry["learned_tokens"]


def test_sums_are_those_of_the_arrow_files(prepared: Any) -> None:
    ledger, learned_in_all = prepared.manifest, 0
    for entry, rows in zip(ledger["buckets"], prepared.rows(), strict=True):
        tokens = sum(len(row["input_ids"]) for row in rows)
        learned = [sum(label != -100 for label in row["labels"]) for row in rows]
        assert (entry["rows"], entry["tokens"], entry["learned_tokens"]) == (len(rows), tokens, sum(learned))
        assert entry["pieces"] == sum(len(row["seq_lens"]) for row in rows)
        assert entry["rows_without_learned_tokens"] == learned.count(0)
        assert entry["fill"] == round(tokens / len(rows) / MAX_LENGTH, 6)
        # A document begins with bos, and no continuation does.
        assert entry["documents"] == sum(row["input_ids"].count(1) for row in rows)
        learned_in_all += sum(learned)
    assert sum(bucket["rows_without_learned_tokens"] for bucket in ledger["buckets"]) > 0
    assert sum(bucket["characters"] for bucket in ledger["buckets"]) == ledger["totals"]["characters"]
    assert sum(category["learned_tokens"] for category in ledger["categories"].values()) == learned_in_all
    reasons = Counter[str]()
    for category in ledger["categories"].values():
        reasons.update(category["not_learned"])
    assert reasons["first_of_document"] == ledger["totals"]["documents"]
    assert min(reasons["source"], reasons["first_of_continuation"]) > 0


@dataclass(frozen=True)
class Balanced:
    """What `balance` compares, true: sums of the files, plan, results of the buckets."""

    sums: dict[str, int]
    plan: Any
    results: list[Any]


@pytest.fixture
def true(tmp_path: Path, numbered_documents: Callable[..., Any], write_numbered: Callable[..., Any]) -> Balanced:
    documents = [(3 + number, 1 + number % 3, number % 2) for number in range(20)]
    numbered = numbered_documents(tmp_path / "encoded", documents)
    written = write_numbered(tmp_path, numbered, 2, MAX_LENGTH)
    tokens = sum(numbered.tokens)
    sums = {"documents": len(documents), "characters": 3 * tokens, "tokens": tokens}
    return Balanced(sums, written.plan, written.results)


def test_a_true_ledger_balances(true: Balanced) -> None:
    balance(true.sums, true.plan, true.results, None)  # raises where a sum differs


@pytest.mark.parametrize("name", ["tokens", "learned_tokens", "pieces"])
def test_a_lost_token_unbalances_it(name: str, true: Balanced) -> None:
    bucket, cuts = true.results[0]
    wrong = [(replace(bucket, **{name: getattr(bucket, name) - 1}), cuts), *true.results[1:]]
    with pytest.raises(UnbalancedError, match="does not balance"):
        balance(true.sums, true.plan, wrong, None)


def test_tokens_in_the_wrong_bucket_unbalance_it(true: Balanced) -> None:
    (first, first_cuts), (second, second_cuts) = true.results
    moved = [
        (replace(first, tokens=first.tokens - 1), first_cuts),
        (replace(second, tokens=second.tokens + 1), second_cuts),
    ]
    with pytest.raises(UnbalancedError, match="tokens of bucket 0"):
        balance(true.sums, true.plan, moved, None)


@pytest.mark.parametrize("name", ["documents", "characters", "tokens"])
def test_files_and_categories_must_agree(name: str, true: Balanced) -> None:
    with pytest.raises(UnbalancedError, match=name):
        balance({**true.sums, name: true.sums[name] + 1}, true.plan, true.results, None)


@pytest.mark.parametrize("name", ["duplicates", "held_out", "repeated", "thinned"])
def test_what_was_left_out_or_repeated_must_be_missing_or_there(name: str, true: Balanced) -> None:
    getattr(true.plan, name).documents[1] += 1
    with pytest.raises(UnbalancedError, match="documents of category 1"):
        balance(true.sums, true.plan, true.results, None)


def test_a_document_in_no_bucket_unbalances_it(true: Balanced) -> None:
    true.plan.documents_per_bucket[0, 0] -= 1
    with pytest.raises(UnbalancedError, match="documents of category 0"):
        balance(true.sums, true.plan, true.results, None)


def test_a_reason_that_is_missing_unbalances_it(true: Balanced) -> None:
    bucket, cuts = true.results[0]
    wrong = [(bucket, replace(cuts, source=cuts.source - 1)), *true.results[1:]]
    with pytest.raises(UnbalancedError, match="reasons not to learn"):
        balance(true.sums, true.plan, wrong, None)


def test_cuts_and_straddling_tokens_are_counted_with_their_category(
    tmp_path: Path, prepare: Callable[..., Any]
) -> None:
    records = [
        {"source": "the qu", "target": "ick", "category": "a"},  # the token "quick" lies on both sides
        {"source": "the", "target": " quick", "category": "a"},
        {"target": "the fox " * 40, "category": "b"},
    ]
    ledger = prepare(tmp_path, records, max_length=16).manifest
    a, b = ledger["categories"]["a"], ledger["categories"]["b"]
    assert (a["straddling_tokens_learned"], b["straddling_tokens_learned"]) == (1, 0)
    assert (a["documents_cut"], a["cuts"]) == (0, {"longer_than_max_length": 0, "row_was_full": 0})
    continuations = -(-b["tokens"] // 16) - 1
    assert (b["documents_cut"], b["cuts"]) == (1, {"longer_than_max_length": continuations, "row_was_full": 0})
    assert b["not_learned"] == {
        "first_of_document": 1,
        "source": 0,
        "first_of_continuation": continuations,
        "added_bos": 0,
    }
