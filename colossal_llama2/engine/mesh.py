"""Which place a rank has among data, pipeline, tensor and sequence parallelism: arithmetic, nothing started yet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mesh:
    """The ranks as a grid of data x pipeline x tensor x sequence, and this rank's place in it.

    The order is the one in which ColossalAI lays out ``HybridParallelPlugin``: the sequence varies fastest, so tensor
    and sequence groups stay inside a node whenever they fit. Ranks that differ only in the last three places see the
    same rows of a batch.

    Attributes:
        sizes: number of places along data, pipeline, tensor and sequence.
        place: this rank's along each, from 0.
    """

    sizes: tuple[int, int, int, int]
    place: tuple[int, int, int, int]

    @classmethod
    def of(cls, rank: int, world_size: int, pp: int = 1, tp: int = 1, sp: int = 1) -> Mesh:
        """Find a rank's place.

        Args:
            rank: its number, from 0.
            world_size: number of ranks, divisible by the product of the degrees.
            pp: pipeline stages.
            tp: tensor-parallel ranks.
            sp: sequence-parallel ranks that are not tensor-parallel ranks at the same time.
        """
        assert world_size % (pp * tp * sp) == 0, "the degrees do not divide the number of ranks"
        sizes = (world_size // (pp * tp * sp), pp, tp, sp)
        place = []
        for size in reversed(sizes):
            place.append(rank % size)
            rank //= size
        return cls(sizes, (place[3], place[2], place[1], place[0]))

    @property
    def data_rank(self) -> int:
        """Number of this rank's share of a global batch."""
        return self.place[0]

    @property
    def data_size(self) -> int:
        """Into how many shares a global batch is divided."""
        return self.sizes[0]

    @property
    def speaks_for_rows(self) -> bool:
        """True on one rank of those that see the same rows: it counts them."""
        return self.place[1:] == (0, 0, 0)

    @property
    def speaks_for_loss(self) -> bool:
        """True on one rank of those that know the loss of the same rows: on the last pipeline stage."""
        return self.place[1:] == (self.sizes[1] - 1, 0, 0)
