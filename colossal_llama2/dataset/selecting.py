"""Which documents of a corpus are taken, and how often: category weights and the part that is held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.order import seeded_permutation
from colossal_llama2.errors import InputError


class ShareTaker:
    """Takes a share of each category's documents, block by block, to the document.

    What a block's share leaves over of a document is carried into the next block, so that of n documents of a category
    and the share s the number taken is n * s, rounded down, whatever the blocks.

    Args:
        shares: [C] share of each category, 0 to 1.
        keys: of the random choice among the documents of a block.
    """

    def __init__(self, shares: npt.NDArray[np.float64], *keys: int) -> None:
        self._shares = shares
        self._carry = np.zeros(len(shares))
        self._keys = keys
        self._num_blocks = 0

    def take(self, categories: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return [D] which documents of a block are taken.

        Args:
            categories: [D] category number of each.
        """
        taken = np.zeros(len(categories), dtype=np.bool_)
        if not self._shares.any():  # nothing is ever taken, which needs no order
            return taken
        order = seeded_permutation(len(categories), *self._keys, self._num_blocks)
        self._num_blocks += 1
        shuffled = categories[order]
        for category in np.unique(categories).tolist():
            members = order[shuffled == category]
            due = len(members) * self._shares[category] + self._carry[category]
            count = int(due + 1e-9)  # 0.1 * 10 is to be 1
            self._carry[category] = due - count
            taken[members[:count]] = True
        return taken


def parse_weights(text: str, names: list[str]) -> dict[str, float]:
    """Read ``a=2,b=0.5``.

    Args:
        text: the flag's value.
        names: the corpus's categories.

    Raises:
        InputError: it cannot be read, a weight is negative, or a category is not in the corpus.
    """
    weights: dict[str, float] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, sign, value = entry.rpartition("=")
        name = name.strip()
        try:
            weight = float(value) if sign else -1.0
        except ValueError:
            weight = -1.0
        if not 0 <= weight <= 1000 or not name:
            raise InputError(
                f"--category_weights: {entry!r} is not a category and a weight",
                remedy="write a=2,b=0.5, weights 0 to 1000",
            )
        if name in weights:
            raise InputError(f"--category_weights names {name!r} twice", remedy="name it once")
        if name not in names:
            known = ", ".join(names[:10]) + ", ..." * (len(names) > 10)
            raise InputError(
                f"--category_weights names {name!r}, which is no category here", remedy=f"there are {known}"
            )
        weights[name] = weight
    return weights


def parse_share(text: str) -> float:
    """Read a share such as ``0.1%`` or ``0.001``.

    Raises:
        InputError: it is neither, or not from 0 to one half.
    """
    try:
        share = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 0.5:
        raise InputError(f"--holdout {text!r} is not a share", remedy="write 0.1% or 0.001, at most 50%")
    return share


def copies_of(
    categories: npt.NDArray[Any], weights: npt.NDArray[np.float64], fractions: ShareTaker
) -> npt.NDArray[np.int64]:
    """Return [D] how often each document is taken.

    Args:
        categories: [D] category number of each.
        weights: [C] weight of each category; 2.5 takes every document twice and half of them a third time.
        fractions: takes the shares behind the point.
    """
    return np.floor(weights)[categories].astype(np.int64) + fractions.take(categories)


def weight_array(weights: Mapping[str, float], names: list[str]) -> npt.NDArray[np.float64]:
    """Return [C] the weight of each category, 1 where none is given."""
    return np.array([weights.get(name, 1.0) for name in names], dtype=np.float64)
