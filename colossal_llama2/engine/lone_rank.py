"""ZeRO with nobody to share with: gradients stay where the backward pass put them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def keeping_gradients(stock: Callable[[Any, Any, int], None]) -> Callable[[Any, Any, int], None]:
    """Wrap ``LowLevelZeroOptimizer._add_to_bucket``, which is called when a weight's gradient is whole.

    ColossalAI copies gradients into a flat buffer, divides it by the number of ranks, sends it and takes the parts out
    of what it receives: three passes over all gradients. One rank alone needs none of them.
    """

    def add(zero: Any, weight: Any, group_id: int) -> None:
        if zero.pid_to_bucket_store[id(weight)].world_size > 1:
            stock(zero, weight, group_id)
            return
        gradient, weight.grad = weight.grad.detach().flatten(), None
        zero._add_grad(gradient, 1, group_id, id(weight))

    return add
