"""How Gemini lays parameters into chunks: pure arithmetic, so that a plan knows their sizes without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from colossal_llama2.engine.plugins import _CHUNKS_AT_LEAST, _LARGEST_MIN_CHUNK


@dataclass(frozen=True)
class Chunk:
    """A chunk's size and the part of it in use, in elements."""

    size: int
    used: int

    def shard(self, ranks: int) -> int:
        """Elements that every rank keeps."""
        return self.size // ranks

    def used_of_first_shard(self, ranks: int) -> int:
        """Elements in use on the first rank, which has the most."""
        return min(self.used, self.size // ranks)


def lay_out_chunks(every: Sequence[int], trained: Sequence[int], ranks: int, hidden: int) -> list[Chunk]:
    """Lay the trained parameters into chunks as zero/gemini/chunk (search_utils.py, manager.py) does.

    The size is searched over all parameters but those far larger than the others, in steps of the hidden width, for the
    least unused room. Parameters follow one another in the model's order; one that is larger than a chunk gets a chunk
    of its own, and what comes after it begins another.

    Args:
        every: elements of each parameter of the model, frozen ones among them.
        trained: those that are trained, in order: only they live in chunks.
        ranks: ranks that share a chunk.
        hidden: step of the search.
    """
    size = _chunk_size(every, ranks, hidden)
    chunks: list[Chunk] = []
    for numel in trained:
        if chunks and chunks[-1].used + numel <= chunks[-1].size:
            chunks[-1] = Chunk(chunks[-1].size, chunks[-1].used + numel)
        else:
            own = numel + (-numel % ranks) if numel > size else size
            chunks.append(Chunk(own, numel))
    return chunks


def _chunk_size(every: Sequence[int], ranks: int, hidden: int) -> int:
    smallest = min(_LARGEST_MIN_CHUNK, max(sum(every) // _CHUNKS_AT_LEAST, 1))
    sizes = np.array(every)
    ordinary = sizes[sizes <= sizes.mean() + 3 * sizes.std()].tolist()
    first = ceil(max(smallest, *ordinary) / hidden) * hidden
    wastes = {size: _unused(ordinary, size) for size in range(first, first + smallest + 1, hidden)}
    best = min(wastes, key=lambda size: wastes[size])
    return best + (-best % ranks)


def _unused(sizes: Sequence[int], chunk: int) -> int:
    lost = left = 0
    for size in sizes:
        if size > left:
            lost += left
            left = chunk
        left -= size
    return lost + left
