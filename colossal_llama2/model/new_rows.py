"""Rows for new tokens: each starts as the mean of the rows of the tokens it was cut into before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional

_ROWS_AT_ONCE: Final = 2048


@dataclass(frozen=True)
class RowPlan:
    """How many rows an expanded matrix has, and where each comes from.

    Attributes:
        num_base: tokens of the base; rows before this are the base's, bit for bit.
        num_tokens: tokens of the expanded tokenizer; rows from `num_base` to here are new.
        num_rows: rows of the expanded matrix. Behind the tokens come the base's own padding rows where it has rows
            left, then new padding.
    """

    num_base: int
    num_tokens: int
    num_rows: int


def plan_rows(num_base: int, num_tokens: int, base_rows: int, multiple: int) -> RowPlan:
    """Round the rows up to a multiple; no row that the base has is ever dropped."""
    assert num_base <= base_rows
    assert num_base <= num_tokens
    return RowPlan(num_base, num_tokens, -(-max(num_tokens, base_rows) // multiple) * multiple)


def mean_rows(base: torch.Tensor, ids: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Average rows of a matrix, bag by bag.

    Args:
        base: [V, D], any floating dtype.
        ids: [T] int64, rows of `base`; bag i is ``ids[offsets[i]:offsets[i + 1]]`` and is not empty.
        offsets: [N + 1] int64.

    Returns:
        [N, D], the means, in float32 (float64 of a float64 base) so that rounding happens once, by the caller.
    """
    wide = torch.promote_types(base.dtype, torch.float32)
    # Only the rows in use are widened: a few thousand where whole alphabets stand in the matrix.
    used, places = torch.unique(ids, return_inverse=True)
    return functional.embedding_bag(places, base[used].to(wide), offsets[:-1], mode="mean")


def mean_of_all(base: torch.Tensor) -> torch.Tensor:
    """Average all rows of [V, D] into [1, D], in float64."""
    total = torch.zeros(1, base.shape[1], dtype=torch.float64)
    for block in base.split(_ROWS_AT_ONCE):
        total += block.to(torch.float64).sum(0, keepdim=True)
    return total / max(base.shape[0], 1)


def expanded_rows(
    base: torch.Tensor, ids: torch.Tensor, offsets: torch.Tensor, plan: RowPlan
) -> Iterator[torch.Tensor]:
    """Yield the expanded matrix from its first row to its last, some thousand rows at a time.

    New padding rows are the mean of all base tokens. They are never a label, but they stand in the denominator of the
    softmax: a mean row gives the mean of the base's logits, which by Jensen's inequality is less than an average
    token's share, where a zero row would give the logit 0, which may be more than any token's.

    Args:
        base: [R, D], or [R] of a bias; its first ``plan.num_base`` rows belong to tokens.
        ids: [T] int64, base tokens of the new tokens, bag by bag.
        offsets: [N + 1] int64, where each bag begins; N = num_tokens - num_base.
        plan: the rows to make.

    Yields:
        Blocks of [n, D] (or [n]) in the dtype of `base`; together ``plan.num_rows`` rows.
    """
    matrix = base.reshape(base.shape[0], -1)
    shape = base.shape[1:]
    yield from (block.reshape(-1, *shape) for block in matrix[: plan.num_base].split(_ROWS_AT_ONCE))
    for begin in range(0, len(offsets) - 1, _ROWS_AT_ONCE):
        some = offsets[begin : begin + _ROWS_AT_ONCE + 1]
        rows = mean_rows(matrix, ids[some[0] : some[-1]], some - some[0])
        yield rows.to(base.dtype).reshape(-1, *shape)
    if len(matrix) > plan.num_tokens:
        yield from (block.reshape(-1, *shape) for block in matrix[plan.num_tokens :].split(_ROWS_AT_ONCE))
    padding = plan.num_rows - max(plan.num_tokens, len(matrix))
    if padding:
        row = mean_of_all(matrix[: plan.num_base]).to(base.dtype)
        yield row.repeat(padding, 1).reshape(-1, *shape)
