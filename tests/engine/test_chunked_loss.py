"""The loss without logits equals the loss over logits, in value and gradient, and never holds them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from colossal_llama2.engine.chunked_loss import HeadPlace, linear_cross_entropies

TOKENS, WIDTH, VOCABULARY = 23, 12, 61
BYTES_A_ROW = 4 * VOCABULARY


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, head, targets, and a factor for each token's loss."""
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(TOKENS, WIDTH, generator=generator) * 3).to(dtype)
    weight = (torch.randn(VOCABULARY, WIDTH, generator=generator) * 3).to(dtype)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    targets[:2] = torch.tensor([0, VOCABULARY - 1])
    return hidden, weight, targets, torch.linspace(-0.5, 1.5, TOKENS)


def plainly(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, factors: torch.Tensor) -> Any:
    """Losses and both gradients in float64, from whole logits."""
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    losses = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    (losses * factors.double()).sum().backward()
    return losses.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("rows", [1, 5, 22, 23, 24, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_the_loss_over_whole_logits(rows: int, dtype: torch.dtype) -> None:
    hidden, weight, targets, factors = inputs(dtype)
    expected = plainly(hidden, weight, targets, factors)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    losses = linear_cross_entropies(hidden, weight, targets, most_bytes=rows * BYTES_A_ROW)
    assert losses.dtype == torch.promote_types(dtype, torch.float32)
    (losses * factors).sum().backward()
    # logits that are rounded to bf16 are off by up to a 256th, and the largest here are about 100
    rtol, atol = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-9, 1e-9), torch.bfloat16: (2e-2, 0.5)}[dtype]
    for actual, wanted in zip((losses.detach(), hidden.grad, weight.grad), expected, strict=True):
        assert actual is not None
        torch.testing.assert_close(actual.double(), wanted, rtol=rtol, atol=atol)


def test_what_learns_nothing_gets_no_gradient() -> None:
    hidden, weight, targets, _ = inputs(torch.float32)
    linear_cross_entropies(hidden.requires_grad_(), weight, targets, most_bytes=BYTES_A_ROW).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    whole = plainly(hidden.detach(), weight, targets, torch.ones(TOKENS))
    torch.testing.assert_close(hidden.grad.double(), whole[1], rtol=1e-4, atol=1e-4)


def test_no_token_at_all() -> None:
    hidden, weight, targets, _ = inputs(torch.float32)
    weight.requires_grad_()
    for most_bytes in (BYTES_A_ROW, 1 << 30):
        losses = linear_cross_entropies(hidden[:0], weight, targets[:0], most_bytes=most_bytes)
        assert losses.shape == (0,)
        losses.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("sizes", [(61,), (31, 30), (20, 20, 21)])
def test_a_divided_head_equals_a_whole_one(thread_group: Callable[[int], Any], sizes: tuple[int, ...]) -> None:
    hidden, weight, targets, factors = inputs(torch.float32)
    expected = plainly(hidden, weight, targets, factors)
    group = thread_group(len(sizes))
    results: dict[int, tuple[torch.Tensor, ...]] = {}

    def work(rank: int) -> None:
        first = sum(sizes[:rank])
        own = hidden.clone().requires_grad_()
        part = weight[first : first + sizes[rank]].clone().requires_grad_()
        losses = linear_cross_entropies(own, part, targets, HeadPlace(first, group), most_bytes=5 * 4 * sizes[rank])
        (losses * factors).sum().backward()
        assert own.grad is not None
        assert part.grad is not None
        results[rank] = (losses.detach(), own.grad, part.grad)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(sizes)
    for losses, of_hidden, _ in results.values():
        torch.testing.assert_close(losses.double(), expected[0], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(of_hidden.double(), expected[1], rtol=1e-4, atol=1e-4)
    of_weight = torch.cat([results[rank][2] for rank in range(len(sizes))])
    torch.testing.assert_close(of_weight.double(), expected[2], rtol=1e-4, atol=1e-4)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that came out of any operation, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_logits_are_never_held() -> None:
    hidden, weight = torch.randn(300, 4, requires_grad=True), torch.randn(500, 4, requires_grad=True)
    targets = torch.randint(500, (300,))
    with LargestTensor() as chunked:
        linear_cross_entropies(hidden, weight, targets, most_bytes=10 * 4 * 500).sum().backward()
    assert chunked.elements == 10 * 500
    with LargestTensor() as plain:
        linear_cross_entropies(hidden, weight, targets, most_bytes=1 << 30).sum().backward()
    assert plain.elements == 300 * 500
