"""How new tokens were cut before they were tokens, and how much each part counts in the row that starts there.

A plain mean forgets the order of the parts: characters that a byte-fallback tokenizer cuts into the same bytes in
another order would start from one row. What is known of weights: a mean lies in the convex hull of the old rows, where
every weighted mean stays and which is a good place to start (Mundra et al., arXiv 2407.05841); parts that stand
everywhere say little (smooth inverse frequency: Arora et al., "A Simple but Tough-to-Beat Baseline for Sentence
Embeddings", 2017).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import Final

import torch

from colossal_llama2.tokenizer.encoder import EncodedTexts

# The last part of a cut that collides counts this much more than plainly; parts before it half as much more, each.
_TILT: Final = 0.25
# What Arora et al. found good for the words of a sentence, 1e-4 to 1e-3; ten times as much changes little here.
_SMOOTH: Final = 1e-3


@dataclass(frozen=True)
class Cuts:
    """The base tokens of each new token, one bag a new token.

    Attributes:
        ids: [T] int64; bag i is ``ids[offsets[i]:offsets[i + 1]]`` and is not empty.
        offsets: [N + 1] int64.
    """

    ids: torch.Tensor
    offsets: torch.Tensor

    @classmethod
    def of(cls, encoded: EncodedTexts) -> Cuts:
        """Take the cuts that `read_extension` found."""
        return cls(torch.from_numpy(encoded.ids).long(), torch.from_numpy(encoded.offsets))

    def __len__(self) -> int:
        """Return the number of new tokens."""
        return len(self.offsets) - 1

    def bags(self) -> Iterator[tuple[int, ...]]:
        """Yield each new token's base tokens."""
        ids = self.ids.tolist()
        for begin, end in pairwise(self.offsets.tolist()):
            yield tuple(ids[begin:end])

    def owners(self) -> torch.Tensor:
        """Return, for each entry of `ids`, the number of its bag: [T] int64."""
        return torch.repeat_interleave(torch.arange(len(self)), self.offsets.diff())


def colliding(cuts: Cuts) -> torch.Tensor:
    """Find the new tokens whose plain mean is another one's: [N] bool.

    They have the same parts in the same proportions, whatever the order: ``ab`` and ``ba``, and also ``abab``.
    """
    keys = [_proportions(bag) for bag in cuts.bags()]
    count = Counter(keys)
    return torch.tensor([count[key] > 1 for key in keys], dtype=torch.bool)


def uniform_weights(cuts: Cuts) -> torch.Tensor:
    """Let every part count alike: [T] float64, one 1 a part."""
    return torch.ones(len(cuts.ids), dtype=torch.float64)


def telling_weights(cuts: Cuts) -> torch.Tensor:
    """Let a part count the less, the more new tokens have it: [T] float64.

    The weight is ``a / (a + p)`` where p is the part's share among all parts of all new tokens. The lead bytes that
    half an alphabet begins with say next to nothing, and in a plain mean they are a third of every row.
    """
    share = torch.bincount(cuts.ids).to(torch.float64) / max(len(cuts.ids), 1)
    return (_SMOOTH / (_SMOOTH + share))[cuts.ids]


def tilted(weights: torch.Tensor, cuts: Cuts, which: torch.Tensor) -> torch.Tensor:
    """Let later parts of some cuts count a little more, so that cuts of the same parts in another order differ.

    The last part gains a quarter, the one before it an eighth, and so on. Two different orders of the same parts give
    at least one part another sum of these powers of two, whatever the orders are. Later parts, not earlier ones:
    it is there that the old tokens had seen the whole piece.

    Args:
        weights: [T].
        cuts: the cuts.
        which: [N] bool, the ones to tilt.

    Returns:
        [T], the new weights.
    """
    from_end = cuts.offsets[1:].repeat_interleave(cuts.offsets.diff()) - 1 - torch.arange(len(cuts.ids))
    gains = 1.0 + _TILT * torch.exp2(-from_end.to(torch.float64))
    return torch.where(which[cuts.owners()], weights * gains, weights)


def normalised(weights: torch.Tensor, cuts: Cuts) -> torch.Tensor:
    """Divide weights by their sum in each bag: [T]."""
    owners = cuts.owners()
    sums = torch.zeros(len(cuts), dtype=weights.dtype).index_add_(0, owners, weights)
    return weights / sums[owners]


def _proportions(bag: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if len(bag) == 1:
        return ((bag[0], 1),)
    counted = Counter(bag)
    common = gcd(*counted.values())
    return tuple(sorted((token, count // common) for token, count in counted.items()))
