"""No two new rows start identical: rows that would are moved apart by a hundredth of the matrix's spread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch.nn import functional

_SHARE: Final = 0.01
# Of a matrix whose rows are all one: nothing to scale by. 0.02 is what most models are drawn with.
_SPREAD_OF_NONE: Final = 0.02
_ATTEMPTS: Final = 64


class Distinct:
    """Takes new rows block by block, as they will be stored, and moves every one that has stood before.

    That happens where two tokens were cut into the very same tokens (characters that a tokenizer without byte fallback
    does not know), or where rounding to the matrix's dtype makes two means one.

    Attributes:
        moved: how many rows were moved so far.
    """

    def __init__(self, spread: Callable[[], float]) -> None:
        """Begin with no rows.

        Args:
            spread: the standard deviation of the base's rows around their mean; asked for once, when a row is moved.
        """
        self._ask_spread, self._spread = spread, 0.0
        self._seen: set[int] = set()
        self._rows = 0
        self.moved = 0

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the next rows [n, D] as they came, but for those that stood before, in this block or an earlier one.

        The noise is drawn from the row's own number: the same rows always move the same way.
        """
        keys = fingerprints(rows)
        again = []
        for index, key in enumerate(keys):
            if key in self._seen:
                again.append(index)
            else:
                self._seen.add(key)
        if again:
            rows = rows.clone()
            for index in again:
                rows[index] = self._moved(rows[index], self._rows + index)
            self.moved += len(again)
        self._rows += len(rows)
        return rows

    def _moved(self, row: torch.Tensor, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(number)
        self._spread = self._spread or self._ask_spread() or _SPREAD_OF_NONE
        size = _SHARE * self._spread
        for _ in range(_ATTEMPTS):
            noise = torch.randn(row.shape, generator=generator, dtype=torch.float64) * size
            moved = (row.to(torch.float64) + noise).to(row.dtype)
            (key,) = fingerprints(moved[None])
            if key not in self._seen:
                self._seen.add(key)
                return moved
            size *= 2  # it was rounded away
        raise AssertionError(f"no free row in {row.dtype} of {len(row)} numbers")


def fingerprints(rows: torch.Tensor) -> list[int]:
    """Return 64 bits for each row of [n, D]; equal rows have equal ones, and others do but once in 2**64 pairs.

    Rows of negative and of positive zeros are equal.
    """
    raw = (rows + 0.0).contiguous().view(torch.uint8)
    if raw.shape[1] % 8:
        raw = functional.pad(raw, (0, -raw.shape[1] % 8))
    words = raw.view(torch.int64)
    generator = torch.Generator().manual_seed(words.shape[1])
    factors = torch.randint(-(1 << 62), 1 << 62, (words.shape[1],), generator=generator) * 2 + 1
    mixed = words * factors  # wraps around, as it should
    mixed ^= mixed >> 29  # brings the high bits down: where rows differ there alone, a sum would forget half of them
    mixed *= factors.roll(1)
    result: list[int] = mixed.sum(1).tolist()
    return result
