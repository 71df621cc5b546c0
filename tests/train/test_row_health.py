"""Figures of new rows from sums over rows, against numpy on the rows themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from colossal_llama2.train.row_health import RUNAWAY, nearest, row_health


def sums(now: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
    return torch.stack(
        [(a * b).sum(1) for a, b in ((now, now), (now, then), (then, then))] + [((now - then) ** 2).sum(1)], 1
    )


def test_figures_are_those_of_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    then, old = (torch.randn(rows, 6, generator=generator, dtype=torch.float64) for rows in (5, 40))
    now = then + 0.1 * torch.randn(5, 6, generator=generator, dtype=torch.float64)
    seen = torch.tensor([True, False, True, True, False])
    health = row_health(sums(now, then), (old**2).sum(1), seen)
    norms, start = np.linalg.norm(now, axis=1), np.linalg.norm(then, axis=1)
    distance = np.linalg.norm(now - then, axis=1) / start
    expected = {
        "norm_mean": norms.mean(),
        "norm_max": norms.max(),
        "old_norm_min": np.linalg.norm(old, axis=1).min(),
        "cosine_mean": ((now * then).sum(1).numpy() / norms / start).mean(),
        "distance_mean": distance.mean(),
        "distance_max": distance.max(),
        "never_updated": 0.4,
        "runaways": 0.0,
    }
    figures = health.figures("never_updated")
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert len(figures) == 4 * 3 + 2


def test_rows_that_have_not_moved_and_rows_of_zeros_have_figures() -> None:
    then = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    health = row_health(sums(then, then), torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.bool))
    assert (health.distance.most, health.unseen) == (0.0, 1.0)
    assert health.cosine.most == pytest.approx(1.0)
    assert None not in health.figures("never_updated").values()
    broken = row_health(sums(then * math.inf, then), torch.ones(3), torch.ones(2, dtype=torch.bool))
    assert broken.figures("never_updated")["norm_max"] is None


def test_a_norm_runs_away_when_it_leaves_old_rows_and_its_own_start_behind() -> None:
    old = torch.ones(200, dtype=torch.float64)
    old[0] = 10000.0  # one large old row does not excuse new ones
    then = torch.tensor([[1.0], [1.0], [0.1], [3.0]], dtype=torch.float64)
    now = then.new_tensor(
        [[RUNAWAY * 1.01], [RUNAWAY * 0.99], [0.9], [3.5]]
    )  # the last two: from small; large from the start
    health = row_health(sums(now, then), old, torch.ones(4, dtype=torch.bool))
    assert [number for number, _, _ in health.runaways] == [0]
    assert list(health.runaways[0][1:]) == pytest.approx([1.0, RUNAWAY * 1.01])


def test_nearest_old_rows_by_cosine() -> None:
    generator = torch.Generator().manual_seed(1)
    old, some = torch.randn(30, 4, generator=generator), torch.randn(3, 4, generator=generator)
    old[7] = 0.0
    found = nearest(old @ some.T, some.norm(dim=1), old.norm(dim=1), 4)
    cosines = torch.nn.functional.cosine_similarity(some[:, None], old[None], dim=2)
    for place, neighbours in enumerate(found):
        expected = cosines[place].sort(descending=True)
        assert [number for number, _ in neighbours] == expected.indices[:4].tolist()
        assert [cosine for _, cosine in neighbours] == pytest.approx(expected.values[:4].tolist(), abs=1e-5)
    assert len(nearest(old[:2] @ some.T, some.norm(dim=1), old[:2].norm(dim=1), 4)[0]) == 2
