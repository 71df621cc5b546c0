"""However answers are packed, padded and divided into micro-batches, each has the same log-probability and loss."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.align.compared_set import ComparedSet, NumberedRow
from colossal_llama2.align.direct import Dpo, Orpo, Simpo
from colossal_llama2.align.direct_batches import DirectCollate, answer_log_probs
from colossal_llama2.align.direct_settings import DpoSettings, OrpoSettings, SimpoSettings
from colossal_llama2.align.reference import KeptReference
from colossal_llama2.dataset.batches import filler_row
from colossal_llama2.dataset.parts import Row
from colossal_llama2.train.settings import DataOptions, ModelOptions, OutputOptions

VOCABULARY, LONGEST = 11, 12
TABLE = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SLOPES = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class ListedSet(ComparedSet):
    """A set that lies in memory."""

    def row(self, index: int) -> NumberedRow:
        rows: list[Row] = vars(self)["rows"]
        return NumberedRow(**vars(rows[index]), number=index)


def listed(rows: list[Row]) -> ListedSet:
    return ListedSet(SimpleNamespace(rows=rows, num_rows=len(rows), fingerprint="f"))  # type: ignore[arg-type]


def logits_of(input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Stand in for a model: what it says depends on a token and its place in its own document, nothing else."""
    return TABLE[input_ids] + 0.1 * SLOPES * position_ids[..., None]


def whole_cross_entropies(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


@st.composite
def sets(draw: st.DrawFn) -> list[Row]:
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        prompt = draw(st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=4))
        answers = draw(
            st.lists(st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=6), min_size=1, max_size=4)
        )
        ids = [token for answer in answers for token in prompt + answer]
        labels = [label for answer in answers for label in [-100] * len(prompt) + answer]
        ranks = draw(st.lists(st.integers(0, 2), min_size=len(answers), max_size=len(answers)))
        lengths = [len(prompt) + len(answer) for answer in answers]
        rows.append(Row(*(np.array(column, dtype=np.int32) for column in (ids, labels, lengths, ranks))))
    return rows


def alone(row: Row) -> list[float]:
    """Return the log-probability of each answer of a row, a token at a time."""
    sums, begin = [], 0
    for length in row.seq_lens.tolist():
        ids, labels = row.input_ids[begin : begin + length], row.labels[begin : begin + length]
        said = logits_of(torch.tensor(ids.astype(int)), torch.arange(length)).log_softmax(-1)
        sums.append(sum(float(said[t - 1, int(labels[t])]) for t in range(1, length) if labels[t] != -100))
        begin += length
    return sums


@settings(max_examples=30, deadline=None)
@given(rows=sets(), room=st.sampled_from([LONGEST, 24, 100]), fixed=st.booleans(), pad=st.integers(0, VOCABULARY - 1))
def test_packing_and_padding_leave_every_answer_its_own(rows: list[Row], room: int, fixed: bool, pad: int) -> None:
    data = listed(rows)
    collate = DirectCollate(data, room, lambda *_: np.arange(data.num_answers, dtype=np.float32))
    members = [data.row(number) for number in range(len(rows))]
    batch = collate([*members, filler_row()], pad, room if fixed else None)
    said = answer_log_probs(logits_of(batch.input_ids, batch.position_ids), batch, whole_cross_entropies)
    expected = [value for row in rows for value in alone(row)]
    order = batch.numbers.tolist()
    assert sorted(order) == list(range(len(expected))) != []
    assert said.sums.tolist() == pytest.approx([expected[number] for number in order], abs=1e-9)
    ranks = [rank for row in rows for rank in row.ranks.tolist()]  # type: ignore[union-attr]
    assert batch.ranks.tolist() == [ranks[number] for number in order]
    assert batch.reference.tolist() == [float(number) for number in order]


def base(folder: Path) -> dict[str, Any]:
    return {"model": ModelOptions(folder), "data": DataOptions((folder,)), "output": OutputOptions(folder)}


@settings(max_examples=20, deadline=None)
@given(rows=sets(), cuts=st.lists(st.booleans(), min_size=4, max_size=4), room=st.sampled_from([LONGEST, 40]))
def test_micro_batches_add_up_to_the_loss_of_one(rows: list[Row], cuts: list[bool], room: int) -> None:
    data, folder = listed(rows), Path("nowhere")
    kept = np.linspace(-9, -1, data.num_answers, dtype=np.float32)
    members = [data.row(number) for number in range(len(rows))]
    parts: list[list[NumberedRow]] = [[]]
    for row, cut in zip(members, cuts, strict=False):
        parts[-1].append(row)
        if cut:
            parts.append([])
    for stage in (
        Dpo(DpoSettings(**base(folder))),
        Simpo(SimpoSettings(**base(folder))),
        Orpo(OrpoSettings(**base(folder))),
    ):
        stage._reference = KeptReference() if stage.sequences else None
        collate = DirectCollate(data, room, lambda *_: kept)

        def sums(packed: list[NumberedRow], stage: Any = stage, collate: Any = collate) -> list[float]:
            batch = collate(packed)
            stage.inputs(batch)
            output = SimpleNamespace(logits=logits_of(batch.input_ids, batch.position_ids))
            found = stage.loss_sums(output, batch, whole_cross_entropies)
            return [float(found.loss), float(stage.count(batch)), *map(float, found.figures.values())]

        together = sums(members)
        apart = [sum(values) for values in zip(*(sums(part) for part in parts), strict=True)]
        assert apart == pytest.approx(together, abs=1e-5)
        assert together[1] == data.num_pairs.sum()


def row_of(prompt: list[int], *answers: list[int]) -> Row:
    ids = [token for answer in answers for token in prompt + answer]
    labels = [label for answer in answers for label in [-100] * len(prompt) + answer]
    columns = (ids, labels, [len(prompt) + len(answer) for answer in answers], list(range(len(answers))))
    return Row(*(np.array(column, dtype=np.int32) for column in columns))


def test_a_prompt_is_mismatched_with_the_next_answer_to_another_one() -> None:
    data = listed([row_of([1], [2]), row_of([1], [3]), row_of([4, 5], [6, 7], [8]), row_of([9], [2] * 5)])
    found = [data.mismatched(number, max_length=6) for number in range(4)]
    assert all(row is not None for row in found)
    assert [row.input_ids.tolist() for row in found if row] == [[1, 6, 7], [1, 6, 7], [4, 5, 2], [9, 2]]
    assert [row.labels.tolist() for row in found if row][2] == [-100, -100, 2]
    assert data.mismatched(0, max_length=2) is None
    assert listed([row_of([1], [2]), row_of([1], [3])]).mismatched(0, 10) is None
    batch = DirectCollate(data, 6, lambda *_: None, with_mismatched=True)([data.row(2), data.row(3)])
    assert batch.mismatched is not None
    assert batch.mismatched.numbers.tolist() == [2, 3]
    assert batch.num_pairs == 1
    assert bool(batch.reference.isnan().all())
