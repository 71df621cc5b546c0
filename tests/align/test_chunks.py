"""Chunked values and gradients are those of all rows at once, and no tensor is larger than promised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from colossal_llama2.align.chunks import at_least_fp32, by_chunks
from colossal_llama2.align.distill_losses import Distillation, distill_sums
from colossal_llama2.align.log_probs import token_entropies


class Allocations(TorchDispatchMode):
    """Notes how many elements each newly allocated tensor has; views of what exists allocate nothing."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self._known = list(known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in self._known if isinstance(t, torch.Tensor)}
        given |= {
            t.untyped_storage().data_ptr() for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)
        }
        for made in tree_flatten(result)[0]:
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in given:
                self.sizes.append(made.numel())
        return result


def test_rows_in_any_order_and_chunks_of_any_size_give_the_whole() -> None:
    logits = torch.randn(11, 5, dtype=torch.float64)
    rows = torch.tensor([9, 0, 3, 10, 4])
    whole = torch.logsumexp(logits[rows], dim=-1)
    for chunk in (1, 2, 5, 100):
        assert torch.equal(by_chunks(lambda part, _: torch.logsumexp(part, dim=-1), logits, rows, chunk), whole)


def test_gradcheck() -> None:
    logits = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([6, 1, 2])
    assert torch.autograd.gradcheck(lambda x: by_chunks(lambda p, _: p.logsumexp(-1), x, rows, 2), logits)


def test_no_rows_are_no_values_and_a_gradient_of_zero() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    values = by_chunks(lambda part, _: part.sum(-1), logits, torch.zeros(0, dtype=torch.long))
    assert values.shape == (0,)
    values.sum().backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_half_types_are_computed_in_fp32_and_get_their_gradient_back_in_their_own_dtype() -> None:
    logits = torch.randn(6, 8, dtype=torch.bfloat16, requires_grad=True)
    values = by_chunks(lambda part, _: part.logsumexp(-1), logits, torch.arange(6), 4)
    assert values.dtype == torch.float32
    assert torch.equal(values, logits.detach().float().logsumexp(-1))
    values.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    assert at_least_fp32(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


CHUNK, VOCABULARY = 4, 50


def distilled(logits: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return distill_sums(logits, teacher, labels, Distillation(2.0, "forward", 0.5, CHUNK)).loss


def distilled_backwards(logits: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return distill_sums(logits, teacher, labels, Distillation(2.0, "reverse", 1.0, CHUNK)).loss


def surprised(logits: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return token_entropies(logits, labels, 0.7, CHUNK).sum()


def all_at_once(logits: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits.float(), dim=-1).sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "loss", [distilled, distilled_backwards, surprised], ids=["forward KL", "reverse KL", "entropy"]
)
def test_nothing_larger_than_a_chunk_is_allocated_but_the_gradient(loss: Any, dtype: torch.dtype) -> None:
    logits = torch.randn(2, 40, VOCABULARY, dtype=dtype, requires_grad=True)
    teacher = torch.randn(2, 40, VOCABULARY, dtype=dtype)
    labels = torch.randint(0, VOCABULARY, (2, 40))
    with Allocations(logits, teacher, labels) as forward:
        value = loss(logits, teacher, labels)
    assert max(forward.sizes) == CHUNK * VOCABULARY
    with Allocations(logits, teacher, labels) as backward:
        value.backward()
    large = [size for size in backward.sizes if size > CHUNK * VOCABULARY]
    assert large == [logits.numel()]


def test_the_counting_sees_a_loss_that_is_not_chunked() -> None:
    logits = torch.randn(2, 40, VOCABULARY, requires_grad=True)
    with Allocations(logits) as forward:
        all_at_once(logits, logits, logits)
    assert max(forward.sizes) == logits.numel()
