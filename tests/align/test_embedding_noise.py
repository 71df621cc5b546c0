"""NEFTune's noise: as large as the paper says for each document, and the document's own wherever it lies."""

from __future__ import annotations

import math

import torch

from colossal_llama2.align.embedding_noise import document_noise

ALPHA, WIDTH = 5.0, 64


def drawn(ids: list[int], bounds: list[int], seeds: tuple[int, ...] = (3, 7)) -> torch.Tensor:
    return document_noise(torch.tensor([ids]), bounds, torch.zeros(1, len(ids), WIDTH), ALPHA, seeds)[0]


def test_the_noise_is_uniform_up_to_alpha_over_the_root_of_the_documents_numbers() -> None:
    lengths = [4, 100, 25]
    noise = drawn(list(range(129)), [0, 4, 104, 129])
    for part, length in zip(noise.split(lengths), lengths, strict=True):
        largest = ALPHA / math.sqrt(length * WIDTH)
        assert part.abs().max() <= largest
        assert part.abs().max() > 0.95 * largest
        assert abs(part.mean()) < 0.15 * largest
        assert abs(part.std() - largest / math.sqrt(3)) < 0.1 * largest


def test_a_document_has_its_own_noise_wherever_it_lies() -> None:
    alone = drawn([5, 6, 7], [0, 3])
    assert torch.equal(alone, drawn([9, 9, 5, 6, 7, 0, 0], [0, 2, 5, 7])[2:5])
    assert not torch.equal(alone, drawn([5, 6, 8], [0, 3]))
    assert not torch.equal(alone, drawn([5, 6, 7], [0, 3], seeds=(3, 8))), "another step"
    assert not torch.equal(alone, drawn([5, 6, 7], [0, 3], seeds=(4, 7))), "another seed"


def test_it_has_the_embeddings_dtype_and_shape() -> None:
    embedded = torch.zeros(2, 3, 8, dtype=torch.bfloat16)
    noise = document_noise(torch.arange(6).view(2, 3), [0, 3, 6], embedded, ALPHA, (0,))
    assert noise.dtype == torch.bfloat16
    assert noise.shape == embedded.shape
    assert not torch.equal(noise[0], noise[1])
