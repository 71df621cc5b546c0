from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from colossal_llama2.align.experience import Judged, Shaping, shape
from colossal_llama2.align.ppo_figures import describe_samples, explained_variance, figures_of
from colossal_llama2.align.rollouts import Answer


class Spelling:
    """Spells ids as numbers."""

    def decode(self, ids: list[int], **options: Any) -> str:
        return " ".join(map(str, ids))


def judged(answer: list[int], log_probs: list[float], reference: list[float], ended: bool = True) -> Judged:
    policy, frozen, values = (np.array(said, dtype=np.float32) for said in (log_probs, reference, [0.0] * len(answer)))
    sampled = Answer(np.array(answer, dtype=np.int32), policy + np.float32(0.5), ended)
    return Judged(np.array([1], dtype=np.int32), sampled, policy, frozen, values, model_score=2.0, function_score=3.0)


ANSWERS = [judged([5, 2], [-1.0, -2.0], [-2.0, -2.0]), judged([6, 7, 8], [-3.0] * 3, [-3.0] * 3, ended=False)]


def test_figures_worked_by_hand() -> None:
    figures = figures_of(shape(ANSWERS, torch.tensor([1.0, 3.0]), 0.5, Shaping(whiten=False)), 0.5)
    expected = {
        "reward": 2.0,
        "reward_std": 1.0,
        "reward_model": 2.0,
        "reward_function": 3.0,
        "reward_shaped": 2.0 - 0.5 * 1.0 / 2,
        "kl": 0.5,
        "kl_per_token": 0.2,
        "kl_coef": 0.5,
        "entropy": 12 / 5,
        "length": 2.5,
        "length_max": 3.0,
        "ended": 0.5,
        "value": 0.0,
        "sampling_gap": 0.5,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)


def test_explained_variance_is_one_for_the_returns_and_zero_for_a_constant() -> None:
    returns = torch.tensor([1.0, 2.0, 5.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((3,), 9.0), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert explained_variance(returns, torch.ones(3)) == 0.0


def test_samples_show_the_best_and_the_worst_without_their_end_token() -> None:
    experience = shape([*ANSWERS, ANSWERS[0]], torch.tensor([1.0, 3.0, 2.0]), 0.1, Shaping())
    shown = describe_samples(experience, Spelling(), 2)
    assert [(sample["answer"], sample["reward"]) for sample in shown] == [("6 7 8", 3.0), ("5", 1.0)]
    assert len(describe_samples(experience, Spelling(), 9)) == 3
    long = judged([7] * 3000, [-1.0] * 3000, [-1.0] * 3000)
    assert (
        "characters more" in describe_samples(shape([long], torch.ones(1), 0.1, Shaping()), Spelling(), 1)[0]["answer"]
    )
