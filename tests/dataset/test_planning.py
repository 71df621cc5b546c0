"""Planning and writing: every token of every document once, in order inside its pieces, labelled as the rule says."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset import planning
from colossal_llama2.dataset.planning import HOLDOUT_FILE, MEMBER, Selection, make_plan
from colossal_llama2.dataset.splicing import Cutting

PLACES, BOS = 100_000, 99_998
DOCUMENT = st.integers(1, 60).flatmap(
    lambda tokens: st.tuples(st.just(tokens), st.integers(0, tokens), st.integers(0, 2))
)


@settings(deadline=None)
@given(
    documents=st.lists(DOCUMENT, min_size=1, max_size=20),
    num_buckets=st.integers(1, 5),
    max_length=st.integers(2, 24),
    per_shard=st.integers(1, 7),
    how=st.sampled_from(["best_fit", "sequential"]),
    block=st.integers(1, 30),
)
def test_documents_come_back_from_the_rows(
    documents: list[tuple[int, int, int]],
    num_buckets: int,
    max_length: int,
    per_shard: int,
    how: str,
    block: int,
    numbered_documents: Callable[..., Any],
    write_numbered: Callable[..., Any],
) -> None:
    with tempfile.TemporaryDirectory() as work, pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "BLOCK_DOCUMENTS", block)
        numbered = numbered_documents(Path(work, "encoded"), documents, per_shard)
        written = write_numbered(Path(work), numbered, num_buckets, max_length, how=how)
        pieces: dict[int, list[tuple[int, list[int], int]]] = defaultdict(list)
        learned: list[int] = []
        firsts: set[int] = set()
        for bucket, rows in enumerate(written.rows()):
            for row in rows:
                assert 0 < len(row["input_ids"]) <= max_length
                assert sum(row["seq_lens"]) == len(row["input_ids"]) == len(row["labels"])
                ends = np.cumsum(row["seq_lens"])
                for begin, end in zip(ends - row["seq_lens"], ends, strict=True):
                    ids, labels = row["input_ids"][begin:end], row["labels"][begin:end]
                    pieces[ids[0] // PLACES].append((ids[0] % PLACES, ids, bucket))
                    firsts.add(ids[0])
                    assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
                    learned += [label for label in labels if label != -100]
    rebuilt = [token for document in sorted(pieces) for _, ids, _ in sorted(pieces[document]) for token in ids]
    assert rebuilt == numbered.all_ids()
    assert all(len({bucket for *_, bucket in of_one}) == 1 for of_one in pieces.values())
    expected = {
        number * PLACES + place
        for number, (length, unlearned, _) in enumerate(documents)
        for place in range(unlearned, length)
    }
    assert sorted(learned) == sorted(expected - firsts)


def plan_of(work: Path, shards: Any, num_buckets: int = 2, **selected: Any) -> Any:
    num_categories = len({name for shard in shards for name in shard.categories})
    chosen: dict[str, Any] = {"weights": np.ones(num_categories), "holdout": 0.0, "seed": 1, **selected}
    folder = Path(tempfile.mkdtemp(dir=work))
    return make_plan(shards, None, Selection(num_buckets, 16, **chosen), folder)


def tokens_of(path: Path) -> Counter[int]:
    return Counter(np.fromfile(path, dtype=MEMBER)["tokens"].tolist())


def test_weights_repeat_and_thin_to_the_document(tmp_path: Path, numbered_documents: Callable[..., Any]) -> None:
    documents = [(10 + number, 1, number % 3) for number in range(120)]  # 40 documents of each category
    numbered = numbered_documents(tmp_path / "encoded", documents)
    plan = plan_of(tmp_path, numbered.shards, weights=np.array([2.25, 1.0, 0.1]))
    placed = sum((tokens_of(plan.member_file(bucket)) for bucket in range(2)), Counter[int]())
    times = [[placed[length] for length, _, category in documents if category == wanted] for wanted in range(3)]
    assert Counter(times[0]) == {2: 30, 3: 10}
    assert Counter(times[1]) == {1: 40}
    assert Counter(times[2]) == {0: 36, 1: 4}
    assert plan.repeated.documents.tolist() == [50, 0, 0]
    assert plan.thinned.documents.tolist() == [0, 0, 36]
    assert plan.documents_per_bucket.sum(axis=1).tolist() == [90, 40, 4]
    other = plan_of(tmp_path, numbered.shards, weights=np.array([2.25, 1.0, 0.1]), seed=2)
    again = sum((tokens_of(other.member_file(bucket)) for bucket in range(2)), Counter[int]())
    assert again.total() == placed.total()
    assert again != placed


def test_what_is_held_out_is_stratified_and_nowhere_else(
    tmp_path: Path, numbered_documents: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [(10 + number, 1, int(number >= 100)) for number in range(150)]
    numbered = numbered_documents(tmp_path / "encoded", documents)
    for block in (7, 1000):
        monkeypatch.setattr(planning, "BLOCK_DOCUMENTS", block)
        plan = plan_of(tmp_path, numbered.shards, holdout=0.1)
        assert plan.held_out.documents.tolist() == [10, 5]
        held_out = tokens_of(plan.folder / HOLDOUT_FILE)
        placed = sum((tokens_of(plan.member_file(bucket)) for bucket in range(2)), Counter[int]())
        assert not set(held_out) & set(placed)
        assert placed + held_out == Counter(length for length, _, _ in documents)


def test_a_bos_of_its_own_lets_a_continuation_be_learned(
    tmp_path: Path, numbered_documents: Callable[..., Any], write_numbered: Callable[..., Any]
) -> None:
    numbered = numbered_documents(tmp_path / "encoded", [(20, 1, 0), (3, 1, 0)])
    written = write_numbered(tmp_path, numbered, 1, 8, cutting=Cutting(8, bos_each_piece=True))
    [(bucket, cuts)] = written.results
    learned, added = [], 0
    for row in written.rows()[0]:
        begin = 0
        for length in row["seq_lens"]:
            ids, labels = row["input_ids"][begin : begin + length], row["labels"][begin : begin + length]
            assert labels == [-100, *ids[1:]]
            added += ids[0] == BOS
            learned += labels[1:]
            begin += length
    assert sorted(learned) == [*range(1, 20), PLACES + 1, PLACES + 2]
    assert added == cuts.added_bos.sum() == cuts.continuations.sum() == 2
    assert (bucket.tokens, bucket.learned_tokens) == (25, 21)


def test_rows_are_shuffled_from_the_seed(
    tmp_path: Path, numbered_documents: Callable[..., Any], write_numbered: Callable[..., Any]
) -> None:
    numbered = numbered_documents(tmp_path / "encoded", [(8, 1, 0)] * 30)

    def order(place: str, seed: int) -> list[int]:
        written = write_numbered(tmp_path / place, numbered, 2, 8, seed=seed)
        return [row["input_ids"][0] for rows in written.rows() for row in rows]

    first, again, other = order("a", 1), order("b", 1), order("c", 2)
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)
