"""Which cuts collide, and weights that tell them apart whatever the order of their parts."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.model.cuts import Cuts, colliding, normalised, telling_weights, tilted, uniform_weights
from colossal_llama2.tokenizer.encoder import EncodedTexts

BAGS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=8)


def cuts_of(bags: list[list[int]]) -> Cuts:
    ids = np.array([index for bag in bags for index in bag], dtype=np.int32)
    return Cuts.of(EncodedTexts(ids, np.array([0, *np.cumsum([len(bag) for bag in bags])], dtype=np.int64)))


@settings(max_examples=200, deadline=None)
@given(bags=BAGS)
def test_those_collide_whose_means_are_equal(bags: list[list[int]]) -> None:
    cuts = cuts_of(bags)
    assert [list(bag) for bag in cuts.bags()] == bags
    exact = [Counter({token: bag.count(token) / len(bag) for token in bag}) for bag in bags]
    assert colliding(cuts).tolist() == [exact.count(mine) > 1 for mine in exact]


def coefficients(cuts: Cuts, weights: torch.Tensor) -> torch.Tensor:
    """[N, V]: how much each base token counts in each row."""
    table = torch.zeros(len(cuts), int(cuts.ids.max()) + 1, dtype=torch.float64)
    return table.index_put((cuts.owners(), cuts.ids), weights, accumulate=True)


@pytest.mark.parametrize("parts", [(0, 1, 2), (0, 0, 1, 1), (0, 1, 1, 2, 0), (0, 1, 2, 3, 4)])
def test_every_order_of_the_same_parts_gets_other_weights(parts: tuple[int, ...]) -> None:
    bags = [list(bag) for bag in dict.fromkeys(itertools.permutations(parts))]
    cuts = cuts_of(bags)
    apart = colliding(cuts)
    assert apart.all()
    for weights in (uniform_weights(cuts), telling_weights(cuts)):
        table = coefficients(cuts, normalised(tilted(weights, cuts, apart), cuts))
        assert torch.allclose(table.sum(1), torch.ones(len(bags), dtype=torch.float64))
        distances = torch.cdist(table, table) + torch.eye(len(bags))
        assert float(distances.min()) > 0.003  # more than bfloat16 rounds away
    plain = coefficients(cuts, normalised(uniform_weights(cuts), cuts))
    assert float(torch.cdist(plain, plain).max()) == pytest.approx(0, abs=1e-7)


@settings(max_examples=100, deadline=None)
@given(bags=BAGS.filter(bool), which=st.integers(0, 7))
def test_only_the_named_are_tilted(bags: list[list[int]], which: int) -> None:
    cuts = cuts_of(bags)
    mask = torch.zeros(len(bags), dtype=torch.bool)
    mask[which % len(bags)] = True
    weights = tilted(uniform_weights(cuts), cuts, mask)
    for index, (begin, end) in enumerate(itertools.pairwise(cuts.offsets.tolist())):
        expected = [1 + 0.25 * 0.5 ** (end - 1 - place) if mask[index] else 1.0 for place in range(begin, end)]
        assert weights[begin:end].tolist() == expected
    assert torch.equal(normalised(weights, cuts), normalised(3 * weights, cuts)) or torch.allclose(
        normalised(weights, cuts), normalised(3 * weights, cuts), rtol=1e-15
    )


def test_a_part_of_many_pieces_counts_less() -> None:
    weights = telling_weights(cuts_of([[0, 1], [0, 2], [0, 3], [0, 4]]))
    shared, own = weights[0].item(), weights[1].item()
    assert weights.tolist() == [shared, own] * 4
    assert shared == pytest.approx(0.001 / (0.001 + 0.5))
    assert own == pytest.approx(0.001 / (0.001 + 0.125))


def test_nothing_to_cut() -> None:
    cuts = cuts_of([])
    assert len(cuts) == 0
    assert list(cuts.bags()) == []
    assert colliding(cuts).tolist() == telling_weights(cuts).tolist() == []
