"""The norm that stays on the device, against ColossalAI's own arithmetic written down by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from colossal_llama2.engine import ranks
from colossal_llama2.engine.device_norm import clip_by_norm, group_norm, norm_of_norms
from colossal_llama2.engine.guard import Guard


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    """Give a group of one."""
    ranks.launch(0)
    yield
    ranks.close()


def gradients(scale: float = 1.0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw) * scale for shape in ((7, 5), (11,))]


def zero(largest: float, guard: Guard | None = None) -> Any:
    return SimpleNamespace(mixed_precision_mixin=None, _clip_grad_norm=largest, optim=SimpleNamespace(guard=guard))


def by_hand(parts: list[torch.Tensor]) -> float:
    return math.sqrt(math.fsum(float(part.double().square().sum()) for part in parts))


def test_the_norm_is_that_of_all_gradients() -> None:
    parts = gradients()
    norm = norm_of_norms([group_norm(None, None, [part]) for part in parts] + [group_norm(None, None, [])])
    assert isinstance(norm, torch.Tensor)
    assert float(norm) == pytest.approx(by_hand(parts), rel=1e-6)
    assert norm_of_norms([3.0, 4.0]) == 5.0
    assert norm_of_norms([]) == 0.0


def test_large_gradients_lose_nothing_by_adding_up_in_fp32() -> None:
    parts = [torch.rand(3, 100_003) + 5.0, torch.rand(1 << 16), torch.rand(1 << 18).half(), torch.zeros(0)]
    assert float(group_norm(None, None, parts)) == pytest.approx(by_hand(parts), rel=2e-7)


@pytest.mark.parametrize("as_number", [False, True])  # 3d's norm is one
@pytest.mark.parametrize(("largest", "scale"), [(1.0, 3.0), (1e6, 3.0), (0.0, 3.0)])
def test_gradients_are_clipped_as_by_the_host(largest: float, scale: float, as_number: bool) -> None:
    found, wanted = gradients(scale), gradients(scale)
    norm = by_hand(wanted)
    clip_by_norm(zero(largest), found, norm if as_number else torch.tensor(norm, dtype=torch.float64))
    clip = (norm + 1e-6) / largest if largest else 0.0
    for own, plain in zip(found, wanted, strict=True):
        assert torch.equal(own, plain * (1.0 / clip) if clip > 1 else plain)


def test_a_norm_that_is_not_finite_blocks_the_guard_for_good() -> None:
    guard = Guard(torch.device("cpu"))
    clip_by_norm(zero(1.0, guard), gradients(), torch.tensor(1.0, dtype=torch.float64))
    assert float(guard.blocked) == 0.0
    clip_by_norm(zero(1.0, guard), gradients(), torch.tensor(math.nan, dtype=torch.float64))
    clip_by_norm(zero(1.0, guard), gradients(), torch.tensor(1.0, dtype=torch.float64))
    assert float(guard.blocked) == 1.0
