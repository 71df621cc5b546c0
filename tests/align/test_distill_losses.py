"""Distillation against float64 loops; its memory is counted in test_chunks.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.align.distill_losses import Distillation, KlDirection, distill_sums, token_divergences
from colossal_llama2.dataset.parts import IGNORED
from colossal_llama2.train.losses import next_token_loss_sum

DIRECTIONS: list[KlDirection] = ["forward", "reverse"]


def probabilities(scores: np.ndarray, temperature: float) -> list[float]:
    exponentials = np.exp(scores / temperature - (scores / temperature).max())
    return [float(each) for each in exponentials / exponentials.sum()]


def by_hand(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, how: Distillation) -> list[float]:
    kl = cross_entropy = 0.0
    tokens = 0
    for b in range(labels.shape[0]):
        for s in range(1, labels.shape[1]):
            if int(labels[b, s]) == IGNORED:
                continue
            mine, theirs = student[b, s - 1].double().numpy(), teacher[b, s - 1].double().numpy()
            p, q = probabilities(mine, how.temperature), probabilities(theirs, how.temperature)
            if how.direction == "reverse":
                p, q = q, p
            kl += sum(y * (math.log(y) - math.log(x)) for x, y in zip(p, q, strict=True))
            cross_entropy -= math.log(probabilities(mine, 1.0)[int(labels[b, s])])
            tokens += 1
    loss = how.kl_share * how.temperature**2 * kl + (1 - how.kl_share) * cross_entropy
    return [loss, kl, cross_entropy, tokens]


@given(
    length=st.integers(1, 9),
    vocabulary=st.integers(2, 7),
    direction=st.sampled_from(DIRECTIONS),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    kl_share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_loop(
    length: int, vocabulary: int, direction: KlDirection, temperature: float, kl_share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 2, length, vocabulary, generator=generator) * 3
    labels = torch.randint(0, vocabulary, (2, length), generator=generator)
    labels[torch.rand(2, length, generator=generator) < 0.3] = IGNORED
    how = Distillation(temperature, direction, kl_share, chunk=3)
    np.testing.assert_allclose(
        torch.stack(distill_sums(student, teacher, labels, how)),
        by_hand(student, teacher, labels, how),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_case_worked_by_hand() -> None:
    # teacher 1/2, 1/2; student 3/4, 1/4: forward 1/2 ln(2/3) + 1/2 ln 2, reverse 3/4 ln(3/2) + 1/4 ln(1/2)
    teacher = torch.tensor([[0.0, 0.0]])
    student = torch.log(torch.tensor([[3.0, 1.0]]))
    rows = torch.tensor([0])
    forward = float(token_divergences(student, teacher, rows))
    reverse = float(token_divergences(student, teacher, rows, Distillation(direction="reverse")))
    assert forward == pytest.approx(0.143841, abs=1e-6)
    assert reverse == pytest.approx(0.130812, abs=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradcheck(direction: KlDirection) -> None:
    student = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    labels = torch.tensor([[IGNORED, 1, 2, IGNORED, 0], [3, 3, IGNORED, 1, 1]])
    how = Distillation(2.0, direction, 0.4, chunk=2)
    assert torch.autograd.gradcheck(lambda x: distill_sums(x, teacher, labels, how).loss, student)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn(direction: KlDirection) -> None:
    student = torch.randn(1, 6, 9, requires_grad=True)
    labels = torch.randint(0, 9, (1, 6))
    sums = distill_sums(
        student, student.detach() + 5.0, labels, Distillation(direction=direction)
    )  # a shift is nothing
    sums.loss.backward()
    assert float(sums.kl) == pytest.approx(0.0, abs=1e-5)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-6


def test_without_the_teacher_it_is_the_loss_of_pretraining() -> None:
    student, teacher = torch.randn(2, 2, 6, 9)
    labels = torch.randint(0, 9, (2, 6))
    loss = distill_sums(student, teacher, labels, Distillation(kl_share=0.0)).loss
    assert float(loss) == pytest.approx(float(next_token_loss_sum(student, labels)), rel=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tokens_excluded_by_both_are_nothing(direction: KlDirection) -> None:
    student = torch.randn(1, 4, 5)
    teacher = torch.randn(1, 4, 5)
    labels = torch.tensor([[IGNORED, 1, 2, 0]])
    how = Distillation(direction=direction)
    alone = distill_sums(student, teacher, labels, how)
    excluded = torch.full((1, 4, 2), -torch.inf)
    wide = torch.cat((student, excluded), dim=-1).requires_grad_()
    sums = distill_sums(wide, torch.cat((teacher, excluded), dim=-1), labels, how)
    sums.loss.backward()
    assert float(sums.loss.detach()) == pytest.approx(float(alone.loss), rel=1e-6)
    assert wide.grad is not None
    assert bool(wide.grad.isfinite().all())


def test_rows_divided_over_ranks_add_up_and_the_teacher_learns_nothing() -> None:
    student = torch.randn(4, 6, 9)
    teacher = torch.randn(4, 6, 9, requires_grad=True)
    labels = torch.randint(0, 9, (4, 6))
    how = Distillation(2.0, "forward", 0.5)
    whole = torch.stack(distill_sums(student, teacher, labels, how))
    parts = [distill_sums(student[i : i + 2], teacher[i : i + 2], labels[i : i + 2], how) for i in (0, 2)]
    torch.testing.assert_close(torch.stack(parts[0]) + torch.stack(parts[1]), whole)
    assert not whole.requires_grad


def test_logits_of_hundreds_stay_numbers() -> None:
    student = torch.tensor([[[500.0, -500.0], [0.0, 0.0]]], requires_grad=True)
    teacher = torch.tensor([[[-500.0, 500.0], [0.0, 0.0]]])
    sums = distill_sums(student, teacher, torch.tensor([[IGNORED, 1]]))
    sums.loss.backward()
    assert float(sums.kl) == pytest.approx(1000.0)
    assert student.grad is not None
    assert student.grad[0, 0].tolist() == pytest.approx([1.0, -1.0])
