"""The sum of cross-entropies whose gradients are taken in the forward pass equals the plain one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from colossal_llama2.engine.chunked_loss import HeadPlace
from colossal_llama2.engine.summed_loss import Summed, Wanted, summed_cross_entropies

TOKENS, WIDTH, VOCABULARY = 23, 12, 61
BYTES_A_ROW = 4 * VOCABULARY


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, head, targets."""
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(TOKENS, WIDTH, generator=generator) * 3).to(dtype)
    weight = (torch.randn(VOCABULARY, WIDTH, generator=generator) * 3).to(dtype)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    targets[:2] = torch.tensor([0, VOCABULARY - 1])
    return hidden, weight, targets


def plainly(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, factor: float = 1.0) -> Any:
    """Losses and both gradients in float64, from whole logits."""
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    losses = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    (losses.sum() * factor).backward()
    return losses.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("rows", [1, 5, 22, 23, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("upstream", "actual"), [(1.0, 1.0), (1.0, -0.37), (1024.0, 1024.0), (8.0, 2.0)])
def test_equals_the_loss_over_whole_logits(rows: int, dtype: torch.dtype, upstream: float, actual: float) -> None:
    hidden, weight, targets = inputs(dtype)
    expected = plainly(hidden, weight, targets, actual)
    hidden.requires_grad_(), weight.requires_grad_()
    how = Wanted(upstream=upstream, most_bytes=rows * BYTES_A_ROW)
    summed = summed_cross_entropies(hidden, weight, targets, how)
    assert summed.total.dtype == summed.losses.dtype == torch.promote_types(dtype, torch.float32)
    assert not summed.losses.requires_grad
    (summed.total * actual).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad.dtype == weight.grad.dtype == dtype
    # logits that are rounded to bf16 are off by up to a 256th, and the largest here are about 100
    rtol, atol = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-9, 1e-9), torch.bfloat16: (2e-2, 0.5)}[dtype]
    torch.testing.assert_close(summed.losses.double(), expected[0], rtol=rtol, atol=atol)
    torch.testing.assert_close(summed.total.double(), expected[0].sum(), rtol=rtol, atol=TOKENS * atol)
    for gradient, wanted in zip((hidden.grad, weight.grad), expected[1:], strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=rtol, atol=atol * max(1.0, abs(actual)))


def test_fp16_keeps_small_gradients_at_the_scale_that_the_sum_will_get() -> None:
    """With gradients of a 2^24th, the smallest number above zero in fp16, the scale decides whether there are any."""
    hidden = torch.zeros(1, 4, dtype=torch.float16)
    hidden[0, 0] = 1.0
    weight = torch.zeros(3, 4, dtype=torch.float16)
    weight[:, 0] = torch.tensor([20.0, 0.0, 0.0])  # p = e^-20 = 2e-9 for the two other rows
    learned = {}
    for upstream in (1.0, 65536.0):
        head = weight.clone().requires_grad_()
        (summed_cross_entropies(hidden, head, torch.tensor([0]), Wanted(upstream=upstream)).total * 65536.0).backward()
        assert head.grad is not None
        learned[upstream] = head.grad[1:, 0]
    assert not learned[1.0].any()
    torch.testing.assert_close(
        learned[65536.0].double(), torch.full((2,), 65536.0 * 2.0612e-9).double(), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
def test_what_learns_nothing_gets_no_gradient(frozen: str) -> None:
    hidden, weight, targets = inputs()
    _, of_hidden, of_weight = plainly(hidden, weight, targets)
    (weight if frozen == "hidden" else hidden).requires_grad_()
    with Products() as seen:
        summed_cross_entropies(hidden, weight, targets, Wanted(most_bytes=1 << 20)).total.backward()
    assert seen.count == 2, "what nobody learns from was computed"
    learned, rest, wanted = (hidden, weight, of_hidden) if frozen == "weight" else (weight, hidden, of_weight)
    assert rest.grad is None
    assert learned.grad is not None
    torch.testing.assert_close(learned.grad.double(), wanted, rtol=1e-4, atol=1e-4)


def test_three_products_a_chunk_and_one_where_nothing_is_learned() -> None:
    hidden, weight, targets = inputs()
    hidden.requires_grad_(), weight.requires_grad_()
    how = Wanted(most_bytes=12 * BYTES_A_ROW)  # two chunks
    with Products() as learning:
        summed_cross_entropies(hidden, weight, targets, how).total.backward()
    assert learning.count == 2 * 3
    with Products() as measuring, torch.no_grad():
        summed = summed_cross_entropies(hidden, weight, targets, how)
    assert measuring.count == 2
    assert not summed.total.requires_grad
    torch.testing.assert_close(summed.losses.double(), plainly(hidden, weight, targets)[0], rtol=1e-5, atol=1e-4)


def test_a_sum_is_taken_back_through_once() -> None:
    hidden, weight, targets = inputs()
    summed = summed_cross_entropies(hidden.requires_grad_(), weight, targets)
    summed.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        summed.total.backward()


def test_no_token_at_all() -> None:
    hidden, weight, targets = inputs()
    weight.requires_grad_()
    summed = summed_cross_entropies(hidden[:0], weight, targets[:0])
    assert summed.losses.shape == (0,)
    summed.total.backward()
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("sizes", [(61,), (31, 30), (20, 20, 21)])
def test_a_divided_head_equals_a_whole_one(thread_group: Callable[[int], Any], sizes: tuple[int, ...]) -> None:
    hidden, weight, targets = inputs()
    expected = plainly(hidden, weight, targets, 0.5)
    group = thread_group(len(sizes))
    results: dict[int, tuple[Summed, torch.Tensor, torch.Tensor]] = {}

    def work(rank: int) -> None:
        first = sum(sizes[:rank])
        own = hidden.clone().requires_grad_()
        part = weight[first : first + sizes[rank]].clone().requires_grad_()
        how = Wanted(upstream=4.0, place=HeadPlace(first, group), most_bytes=5 * 4 * sizes[rank])
        summed = summed_cross_entropies(own, part, targets, how)
        (summed.total * 0.5).backward()
        assert own.grad is not None
        assert part.grad is not None
        results[rank] = (summed, own.grad, part.grad)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(sizes)
    for summed, of_hidden, _ in results.values():
        torch.testing.assert_close(summed.losses.double(), expected[0], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(of_hidden.double(), expected[1], rtol=1e-4, atol=1e-4)
    of_weight = torch.cat([results[rank][2] for rank in range(len(sizes))])
    torch.testing.assert_close(of_weight.double(), expected[2], rtol=1e-4, atol=1e-4)


class Products(TorchDispatchMode):
    """Counts products of matrices, and remembers the largest tensor that came out of any operation, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_logits_are_never_held() -> None:
    hidden, weight = torch.randn(300, 4, requires_grad=True), torch.randn(500, 4, requires_grad=True)
    with Products() as seen:
        how = Wanted(most_bytes=10 * 4 * 500)
        summed_cross_entropies(hidden, weight, torch.randint(500, (300,)), how).total.backward()
    assert seen.largest == 10 * 500
