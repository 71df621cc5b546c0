"""Cross-entropy over a divided vocabulary equals the one over the whole, in value and gradient."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from colossal_llama2.engine.parallel_loss import cross_entropies


@pytest.mark.parametrize("sizes", [(7,), (4, 3), (5, 5, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divided_equals_whole(thread_group: Callable[[int], Any], sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    vocabulary, tokens = sum(sizes), 6
    whole = (torch.randn(tokens, vocabulary) * 30).to(
        dtype
    )  # large: exp of these overflows unless the maximum is taken off
    targets = torch.tensor([0, vocabulary - 1, sizes[0] - 1, min(sizes[0], vocabulary - 1), 1, 2])
    exact = whole.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, targets, reduction="none")
    weights = torch.linspace(0.5, 1.5, tokens)  # each token's gradient has a scale of its own
    (expected * weights).sum().backward()

    group = thread_group(len(sizes))
    results: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def work(rank: int) -> None:
        first = sum(sizes[:rank])
        part = whole[:, first : first + sizes[rank]].clone().requires_grad_()
        losses = cross_entropies(part, targets, first, group)
        (losses * weights).sum().backward()
        assert part.grad is not None
        results[rank] = (losses.detach(), part.grad)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(sizes)
    for losses, _ in results.values():
        torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    gradient = torch.cat([results[rank][1] for rank in range(len(sizes))], dim=1)
    assert gradient.dtype == dtype
    assert exact.grad is not None
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
