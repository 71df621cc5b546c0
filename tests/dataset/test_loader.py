"""The loader: however ranks, micro-batches and accumulation divide a step, it is the same step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.loader import GlobalBatches, LoaderSettings, StepBatch
from colossal_llama2.dataset.order import epoch_order


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, numbered_corpus: Callable[..., Any]) -> PreparedCorpus:
    documents = [(2 + number % 9, 1, number % 2) for number in range(70)]
    return PreparedCorpus.open([numbered_corpus(tmp_path_factory.mktemp("loader"), documents, 3, 12)[0]])


def steps(
    corpus: PreparedCorpus, division: tuple[int, int, int], epoch: int = 0, consumed: int = 0
) -> list[list[StepBatch]]:
    """Every step as the list of what each rank gets."""
    world_size, micro, accumulation = division
    settings = LoaderSettings(0, world_size, micro, accumulation, seed=5)
    ranks = [GlobalBatches(corpus, replace(settings, rank=rank)) for rank in range(world_size)]
    shares = [list(rank.iterate(epoch, consumed)) for rank in ranks]
    assert {len(share) for share in shares} == {-(-(corpus.num_rows - consumed) // (world_size * micro * accumulation))}
    return [list(step) for step in zip(*shares, strict=True)]


def rows_of(step: list[StepBatch]) -> list[int]:
    return sorted(row for share in step for row in share.row_indices)


@pytest.mark.parametrize("division", [(1, 1, 8), (8, 1, 1), (2, 2, 2), (4, 1, 2), (2, 1, 4), (1, 4, 2)])
def test_every_division_sees_the_same_rows_each_step(corpus: PreparedCorpus, division: tuple[int, int, int]) -> None:
    assert corpus.num_rows % 8  # the last step is not full
    plain, divided = steps(corpus, (1, 8, 1), epoch=1), steps(corpus, division, epoch=1)
    assert [rows_of(step) for step in plain] == [rows_of(step) for step in divided]
    assert sorted(row for step in divided for row in rows_of(step)) == list(range(corpus.num_rows))
    for one, many in zip(plain, divided, strict=True):
        assert one[0].num_learned == sum(share.num_learned for share in many) > 0
        assert {share.rows_consumed_after for share in many} == {one[0].rows_consumed_after}
        for share in many:
            assert len(share.micro_batches) == division[2]
            assert {len(micro_batch.input_ids) for micro_batch in share.micro_batches} == {division[1]}
            assert share.num_learned == sum(micro_batch.num_learned for micro_batch in share.micro_batches)
    assert plain[-1][0].rows_consumed_after == corpus.num_rows


def test_micro_batches_hold_the_rows_they_name(corpus: PreparedCorpus) -> None:
    for step in steps(corpus, (2, 2, 2)):
        for share in step:
            lengths = [length for batch in share.micro_batches for length in batch.document_lengths]
            assert lengths == [length for row in share.row_indices for length in corpus.row(row).seq_lens.tolist()]


@given(consumed=st.integers(0, 200))
def test_resuming_anywhere_continues_the_sequence(corpus: PreparedCorpus, consumed: int) -> None:
    order = epoch_order(corpus.bucket_sizes, 5, 0).tolist()
    consumed = min(consumed, len(order))
    resumed = steps(corpus, (1, 1, 3), consumed=consumed)
    assert [row for step in resumed for share in step for row in share.row_indices] == order[consumed:]
    ends = [step[0].rows_consumed_after for step in resumed]
    assert ends == [min(end, len(order)) for end in range(consumed + 3, len(order) + 3, 3)]


def test_steps_per_epoch_counts_the_partial_step(corpus: PreparedCorpus) -> None:
    batches = GlobalBatches(corpus, LoaderSettings(0, 2, 2, 2, seed=5))
    assert batches.rows_per_step == 8
    assert batches.steps_per_epoch == len(list(batches.iterate(0))) == corpus.num_rows // 8 + 1


def test_leaving_early_leaves_no_thread(corpus: PreparedCorpus) -> None:
    before = threading.active_count()
    running = GlobalBatches(corpus, LoaderSettings(0, 1, 1, 1, seed=5)).iterate(0)
    assert next(running).rows_consumed_after == 1
    assert threading.active_count() == before + 1
    running.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_an_error_while_reading_ahead_reaches_the_caller(
    corpus: PreparedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(index: int) -> None:
        raise OSError("gone")

    monkeypatch.setattr(corpus, "row", broken)
    with pytest.raises(OSError, match="gone"):
        next(GlobalBatches(corpus, LoaderSettings(0, 1, 1, 1, seed=5)).iterate(0))
