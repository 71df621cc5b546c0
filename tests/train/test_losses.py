"""The loss against a float64 loop, and its independence of how a batch is divided."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.train.losses import IGNORED, next_token_loss_sum


def by_hand(logits: torch.Tensor, labels: torch.Tensor) -> float:
    total = 0.0
    for row in range(labels.shape[0]):
        for position in range(1, labels.shape[1]):
            label = int(labels[row, position])
            if label != IGNORED:
                scores = [float(x) for x in logits[row, position - 1].double()]
                largest = max(scores)
                total += largest + math.log(sum(math.exp(x - largest) for x in scores)) - scores[label]
    return total


@given(rows=st.integers(1, 3), length=st.integers(1, 8), vocabulary=st.integers(2, 9), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_equals_the_loop(rows: int, length: int, vocabulary: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, vocabulary, generator=generator) * 5
    labels = torch.randint(0, vocabulary, (rows, length), generator=generator)
    labels[torch.rand(rows, length, generator=generator) < 0.4] = IGNORED
    assert math.isclose(float(next_token_loss_sum(logits, labels)), by_hand(logits, labels), rel_tol=1e-5, abs_tol=1e-4)


def test_nothing_to_learn_is_a_loss_of_zero_with_a_gradient_of_zero() -> None:
    logits = torch.randn(2, 4, 5, requires_grad=True)
    loss = next_token_loss_sum(logits, torch.full((2, 4), IGNORED))
    loss.backward()
    assert float(loss) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_half_precision_logits_are_summed_in_fp32() -> None:
    logits = torch.zeros(1, 4097, 8, dtype=torch.bfloat16)
    labels = torch.zeros(1, 4097, dtype=torch.long)
    assert math.isclose(float(next_token_loss_sum(logits, labels)), 4096 * math.log(8), rel_tol=1e-5)


def test_the_first_label_of_a_row_is_never_predicted() -> None:
    logits = torch.randn(1, 3, 4)
    labels = torch.tensor([[2, IGNORED, IGNORED]])
    assert float(next_token_loss_sum(logits, labels)) == 0.0
