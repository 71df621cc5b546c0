from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.align.experience import (
    Judged,
    Shaping,
    minibatches,
    pack,
    shape,
    share_of_rank,
    take,
    total_weight,
)
from colossal_llama2.align.rollouts import Answer


def judged(prompt: list[int], answer: list[int], **said: list[float]) -> Judged:
    numbers = {
        name: np.array(said.get(name, [0.0] * len(answer)), dtype=np.float32)
        for name in ("log_probs", "reference_log_probs", "values")
    }
    ids = np.array(answer, dtype=np.int32)
    return Judged(
        np.array(prompt, dtype=np.int32), Answer(ids, numbers["log_probs"], True), **numbers, model_score=0.0,
        function_score=0.0,
    )  # fmt: skip


def test_a_packed_row_learns_the_answers_alone() -> None:
    batch = pack([(np.array([5, 6]), np.array([7])), (np.array([8]), np.array([9, 10]))])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 10]]
    assert batch.labels.tolist() == [[-100, -100, 7, -100, 9, 10]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert batch.cu_seq_lens.tolist() == [0, 3, 6]


def test_rewards_and_advantages_worked_by_hand() -> None:
    one = judged([1], [2, 3], log_probs=[-1.0, -2.0], reference_log_probs=[-1.5, -1.0], values=[0.5, 0.25])
    got = shape([one, judged([1], [4])], torch.tensor([2.0, 1.0]), 0.1, Shaping(gamma=1.0, lam=0.5, whiten=False))
    torch.testing.assert_close(got.kl[0], torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(got.rewards[0], torch.tensor([-0.05, 2.1]))
    # delta_2 = 2.1 - 0.25 = 1.85; delta_1 = -0.05 + 0.25 - 0.5 = -0.3; A_1 = -0.3 + 0.5 * 1.85
    torch.testing.assert_close(got.advantages[0], torch.tensor([0.625, 1.85]))
    torch.testing.assert_close(got.returns[0], torch.tensor([1.125, 2.1]))
    assert [len(row) for row in got.advantages] == [2, 1]


def test_whitening_is_over_the_whole_rollout() -> None:
    random = np.random.default_rng(0)
    answers = [judged([1], [2] * length, values=random.normal(size=length).tolist()) for length in (3, 1, 7)]
    got = shape(answers, torch.tensor([1.0, -1.0, 3.0]), 0.1, Shaping())
    everything = torch.cat(got.advantages)
    assert float(everything.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(everything.var(unbiased=False)) == pytest.approx(1.0, abs=1e-4)


def test_a_micro_batch_lines_up_with_its_tokens() -> None:
    answers = [judged([1], [2, 3], log_probs=[-1.0, -2.0]), judged([4, 5], [6], log_probs=[-3.0])]
    experience = shape(answers, torch.tensor([1.0, 2.0]), 0.0, Shaping(whiten=False))
    batch = take(experience, [1, 0], of_answers=True)
    assert batch.rows.input_ids.tolist() == [[4, 5, 6, 1, 2, 3]]
    assert batch.old_log_probs.tolist() == [-3.0, -1.0, -2.0]
    assert batch.weights.tolist() == [1.0, 0.5, 0.5]
    assert total_weight(experience, [1, 0], True) == 2
    assert total_weight(experience, [1, 0], False) == take(experience, [1, 0], False).weights.sum() == 3


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 9))
def test_every_answer_is_learned_from_once_whatever_the_ranks(per_rank: int, ranks: int, parts: int, key: int) -> None:
    num = per_rank * ranks * parts
    lengths = [(7 * number) % 5 + 1 for number in range(num)]
    learned = []
    for numbers in minibatches(num, parts, key):
        shares = [share_of_rank(numbers, lengths, rank, ranks) for rank in range(ranks)]
        assert {len(share) for share in shares} == {per_rank}
        assert sorted(number for share in shares for number in share) == sorted(numbers)
        learned += numbers
    assert sorted(learned) == list(range(num))
