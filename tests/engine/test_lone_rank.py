"""One rank's gradients stay where they are, and add up over micro-batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from colossal_llama2.engine.lone_rank import keeping_gradients


def test_gradients_stay_and_add_up() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    kept: list[torch.Tensor] = []
    stock: list[Any] = []
    zero: Any = SimpleNamespace(
        pid_to_bucket_store={id(weight): SimpleNamespace(world_size=1)},
        _add_grad=lambda gradient, parts, group, number: kept.append(gradient),
    )
    add = keeping_gradients(lambda *arguments: stock.append(arguments))
    weight.grad = gradient = torch.full((2, 3), 2.0)
    add(zero, weight, 0)
    assert weight.grad is None
    assert (kept[0].data_ptr(), kept[0].shape) == (gradient.data_ptr(), (6,))
    zero.pid_to_bucket_store[id(weight)].world_size = 2
    add(zero, weight, 0)
    assert (len(kept), len(stock)) == (1, 1)
