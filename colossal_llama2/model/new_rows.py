"""Rows for new tokens, from the rows of the tokens that each was cut into before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional

from colossal_llama2.model.cuts import Cuts, colliding, normalised, telling_weights, tilted, uniform_weights
from colossal_llama2.model.distinct import Distinct

_ROWS_AT_ONCE: Final = 2048

RowSource = Callable[[torch.Tensor], Iterator[torch.Tensor]]
"""Gives the new rows of a matrix [V, D] of the base's tokens, in order, some at a time: [n, D], float32 or wider."""


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


def mean_rows(
    base: torch.Tensor, ids: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Average rows of a matrix, bag by bag.

    Args:
        base: [V, D], any floating dtype.
        ids: [T] int64, rows of `base`; bag i is ``ids[offsets[i]:offsets[i + 1]]`` and is not empty.
        offsets: [N + 1] int64.
        weights: [T], those of a bag summing to 1; without them all count alike.

    Returns:
        [N, D], the means, in float32 (float64 of a float64 base) so that rounding happens once, by the caller.
    """
    wide = torch.promote_types(base.dtype, torch.float32)
    # Only the rows in use are widened: a few thousand where whole alphabets stand in the matrix.
    used, places = torch.unique(ids, return_inverse=True)
    if weights is None:
        return functional.embedding_bag(places, base[used].to(wide), offsets[:-1], mode="mean")
    sums = weights.to(wide)
    return functional.embedding_bag(places, base[used].to(wide), offsets[:-1], mode="sum", per_sample_weights=sums)


def mean_of_all(base: torch.Tensor) -> torch.Tensor:
    """Average all rows of [V, D] into [1, D], in float64."""
    total = torch.zeros(1, base.shape[1], dtype=torch.float64)
    for block in base.split(_ROWS_AT_ONCE):
        total += block.to(torch.float64).sum(0, keepdim=True)
    return total / max(base.shape[0], 1)


def deviation_of_all(base: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of each column of [V, D] as [1, D], in float64."""
    mean = mean_of_all(base)
    total = torch.zeros(1, base.shape[1], dtype=torch.float64)
    for block in base.split(_ROWS_AT_ONCE):
        total += (block.to(torch.float64) - mean).square().sum(0, keepdim=True)
    return (total / max(base.shape[0], 1)).sqrt()


def spread(base: torch.Tensor) -> float:
    """Return how far the rows of [V, D] lie around their mean, per number: one standard deviation for all columns.

    It is a scale, so two thousand rows, evenly spaced, stand for all of them.
    """
    some = base[:: -(-max(len(base), 1) // _ROWS_AT_ONCE)]
    return float(deviation_of_all(some).square().mean().sqrt())


def averages(cuts: Cuts, telling: bool = False) -> RowSource:
    """Make rows that are means of the rows of each token's parts.

    Args:
        cuts: the parts.
        telling: let a part count the less, the more new tokens have it (see `telling_weights`); otherwise all parts
            count alike.

    Returns:
        The source. Tokens whose parts are another one's in another order are tilted apart (see `tilted`); where
        neither that nor weights apply, a row is what `mean_rows` gives, bit for bit.
    """
    apart = colliding(cuts)
    weighted = torch.ones_like(apart) if telling else apart
    weights = telling_weights(cuts) if telling else uniform_weights(cuts)
    weights = normalised(tilted(weights, cuts, apart), cuts)

    def rows(base: torch.Tensor) -> Iterator[torch.Tensor]:
        for begin in range(0, len(cuts), _ROWS_AT_ONCE):
            some = cuts.offsets[begin : begin + _ROWS_AT_ONCE + 1]
            part = slice(int(some[0]), int(some[-1]))
            which = weighted[begin : begin + _ROWS_AT_ONCE]
            if which.all():
                yield mean_rows(base, cuts.ids[part], some - some[0], weights[part])
                continue
            block = mean_rows(base, cuts.ids[part], some - some[0])
            if which.any():
                block[which] = mean_rows(base, cuts.ids[part], some - some[0], weights[part])[which]
            yield block

    return rows


def drawn(count: int, seed: int) -> RowSource:
    """Make rows at random, each number from a normal distribution with its column's mean and standard deviation.

    The control that other ways are measured against: what a row would be that knows nothing of its parts.
    """

    def rows(base: torch.Tensor) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        mean, deviation = mean_of_all(base), deviation_of_all(base)
        for begin in range(0, count, _ROWS_AT_ONCE):
            size = (min(_ROWS_AT_ONCE, count - begin), base.shape[1])
            yield mean + deviation * torch.randn(size, generator=generator, dtype=torch.float64)

    return rows


def as_given(rows: torch.Tensor) -> RowSource:
    """Take rows that are there already, [N, D]."""
    return lambda base: iter(rows.split(_ROWS_AT_ONCE))


def expanded_rows(
    base: torch.Tensor, source: RowSource, plan: RowPlan, distinct: Distinct | None = None
) -> Iterator[torch.Tensor]:
    """Yield the expanded matrix from its first row to its last, some thousand rows at a time.

    New padding rows are the mean of all base tokens. They are never a label, but they stand in the denominator of the
    softmax: a mean row gives the mean of the base's logits, which by Jensen's inequality is less than an average
    token's share, where a zero row would give the logit 0, which may be more than any token's.

    Args:
        base: [R, D], or [R] of a bias; its first ``plan.num_base`` rows belong to tokens.
        source: gives the rows of the new tokens.
        plan: the rows to make.
        distinct: moves rows that came before, and counts them; None lets them pass.

    Yields:
        Blocks of [n, D] (or [n]) in the dtype of `base`; together ``plan.num_rows`` rows.
    """
    matrix = base.reshape(base.shape[0], -1)
    shape = base.shape[1:]
    yield from (block.reshape(-1, *shape) for block in matrix[: plan.num_base].split(_ROWS_AT_ONCE))
    made = 0
    for rows in source(matrix[: plan.num_base]):
        block = rows.to(base.dtype)
        made += len(block)
        yield (block if distinct is None else distinct.take(block)).reshape(-1, *shape)
    assert made == plan.num_tokens - plan.num_base, "a row for every new token"
    if len(matrix) > plan.num_tokens:
        yield from (block.reshape(-1, *shape) for block in matrix[plan.num_tokens :].split(_ROWS_AT_ONCE))
    padding = plan.num_rows - max(plan.num_tokens, len(matrix))
    if padding:
        row = mean_of_all(matrix[: plan.num_base]).to(base.dtype)
        yield row.repeat(padding, 1).reshape(-1, *shape)
