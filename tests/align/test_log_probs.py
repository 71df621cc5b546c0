"""Log-probabilities, sums and entropies of packed rows against float64 loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.align.log_probs import (
    answer_weights,
    learned_positions,
    sequence_numbers,
    sequence_sums,
    token_entropies,
    token_log_probs,
)
from colossal_llama2.dataset.batches import collate
from colossal_llama2.dataset.parts import IGNORED, Row


def softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.exp(scores - scores.max())
    return shifted / shifted.sum()


def by_hand(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> list[tuple[int, float, float]]:
    """Return position, log-probability and entropy of every learned token."""
    found = []
    for b in range(labels.shape[0]):
        for s in range(1, labels.shape[1]):
            if int(labels[b, s]) != IGNORED:
                p = softmax(logits[b, s - 1].double().numpy() / temperature)
                entropy = -sum(x * math.log(x) for x in p.tolist())
                found.append((b * labels.shape[1] + s, math.log(p[int(labels[b, s])]), entropy))
    return found


@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 9),
    vocabulary=st.integers(2, 7),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    seed=st.integers(0, 999),
)
@settings(max_examples=80, deadline=None)
def test_equals_the_loop(rows: int, length: int, vocabulary: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, vocabulary, generator=generator) * 3
    labels = torch.randint(0, vocabulary, (rows, length), generator=generator)
    labels[torch.rand(rows, length, generator=generator) < 0.4] = IGNORED
    wanted = by_hand(logits, labels, temperature)
    found = token_log_probs(logits, labels, temperature=temperature)
    entropies = token_entropies(logits, labels, temperature, chunk=3)
    assert found.positions.tolist() == [position for position, _, _ in wanted]
    assert found.tokens.tolist() == labels.reshape(-1)[found.positions].tolist()
    np.testing.assert_allclose(found.log_probs, [value for _, value, _ in wanted], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(entropies, [value for _, _, value in wanted], rtol=1e-4, atol=1e-5)


def test_a_case_worked_by_hand() -> None:
    # probabilities 1/2, 1/4, 1/4 at temperature 1; 2/3, 1/6, 1/6 at 1/2
    logits = torch.log(torch.tensor([[[2.0, 1.0, 1.0], [9.0, 9.0, 9.0]]]))
    labels = torch.tensor([[IGNORED, 1]])
    assert float(token_log_probs(logits, labels).log_probs) == pytest.approx(math.log(0.25))
    assert float(token_log_probs(logits, labels, temperature=0.5).log_probs) == pytest.approx(math.log(1 / 6))
    assert float(token_entropies(logits, labels)) == pytest.approx(1.5 * math.log(2))


def test_the_sessions_cross_entropies_are_given_the_logits_of_learned_tokens_only() -> None:
    seen = []

    def cross_entropies(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append((logits.shape, logits.dtype, targets.tolist()))
        return torch.arange(len(targets)).float()

    labels = torch.tensor([[3, 4, IGNORED, 1]])
    found = token_log_probs(torch.zeros(1, 4, 5, dtype=torch.bfloat16), labels, cross_entropies)
    token_log_probs(torch.zeros(1, 4, 5, dtype=torch.bfloat16), labels, cross_entropies, temperature=0.5)
    assert found.log_probs.tolist() == [0.0, -1.0]
    assert seen == [((2, 5), torch.bfloat16, [4, 1]), ((2, 5), torch.float32, [4, 1])]


def test_gradcheck_of_log_probabilities_and_entropies() -> None:
    logits = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[IGNORED, 1, IGNORED, 2, 3], [0, 0, IGNORED, IGNORED, 1]])
    assert torch.autograd.gradcheck(lambda x: token_log_probs(x, labels, temperature=0.7).log_probs, logits)
    assert torch.autograd.gradcheck(lambda x: token_entropies(x, labels, 0.7, chunk=2), logits)


def test_an_excluded_token_adds_nothing_to_the_entropy_and_leaves_the_gradient_a_number() -> None:
    logits = torch.tensor([[[0.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]]], requires_grad=True)
    entropy = token_entropies(logits, torch.tensor([[IGNORED, 0]])).sum()
    entropy.backward()
    assert float(entropy.detach()) == pytest.approx(math.log(2))
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_nothing_learned_is_nothing_returned() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    labels = torch.tensor([[1, IGNORED, IGNORED], [2, IGNORED, IGNORED]])  # a first position is never predicted
    found = token_log_probs(logits, labels)
    assert found.log_probs.shape == (0,)
    assert token_entropies(logits, labels).shape == (0,)
    assert sequence_sums(found.log_probs, found.positions, 3).lengths.tolist() == [0, 0, 0]


def row(*lengths: int) -> Row:
    ids = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    return Row(ids, ids.copy(), np.array(lengths, dtype=np.int32))


def test_the_pieces_of_a_batch_are_found_and_summed() -> None:
    batch = collate([row(3, 2), row(4)])
    # row 0: pieces of 3 and 2; row 1: a piece of 4, then padding of 1. The first token of a piece is not learned.
    positions = learned_positions(batch.labels)
    assert positions.tolist() == [1, 2, 4, 6, 7, 8]
    numbers = sequence_numbers(positions, batch.cu_seq_lens)
    assert numbers.tolist() == [0, 0, 1, 2, 2, 2]
    sums, lengths = sequence_sums(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]), numbers, 4)
    assert sums.tolist() == [3.0, 4.0, 56.0, 0.0]
    assert lengths.tolist() == [2, 1, 3, 0]
    weights = answer_weights(numbers, lengths)
    assert weights.tolist() == pytest.approx([1 / 2, 1 / 2, 1, 1 / 3, 1 / 3, 1 / 3])


def test_packing_and_padding_do_not_change_what_is_said_of_a_sequence() -> None:
    table = torch.randn(20, 20)  # the logits of a model that looks at the last token only
    documents = [row(4), row(2), row(5)]

    def of(rows: list[Row], length: int | None, num: int) -> list[float]:
        batch = collate(rows, length=length)
        found = token_log_probs(table[batch.input_ids], batch.labels)
        numbers = sequence_numbers(found.positions, batch.cu_seq_lens)
        sums, lengths = sequence_sums(found.log_probs, numbers, len(batch.cu_seq_lens) - 1)
        return sorted(float(each) for each, count in zip(sums, lengths, strict=True) if count)

    def packed(*rows: Row) -> Row:
        return Row(*(np.concatenate([getattr(r, name) for r in rows]) for name in ("input_ids", "labels", "seq_lens")))

    alone = of(documents, None, 3)
    assert len(alone) == 3
    assert of([packed(*documents)], None, 3) == pytest.approx(alone)
    assert of([packed(documents[2], documents[0]), documents[1]], 16, 3) == pytest.approx(alone)
