"""Which new tokens a run has trained so far, counted from the batches: a bit a token, exact on any number of ranks."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from colossal_llama2.dataset.batches import Batch
from colossal_llama2.engine import ranks
from colossal_llama2.errors import InputError
from colossal_llama2.train.losses import IGNORED

_VERSION = 1


@dataclass(frozen=True)
class Sighting:
    """New tokens in a rank's share of a global batch, by their number among the new tokens, repeats included.

    Attributes:
        inputs: [N] int64, those whose input rows get a gradient.
        labels: [M] int64, those that are to be predicted.
    """

    inputs: torch.Tensor
    labels: torch.Tensor


class SeenRows:
    """A bit for every new token that has stood in a batch.

    Attributes:
        rows: ids of the new tokens.
        inputs: [R] bool, those whose input rows were updated, on this rank or on any before the last `over_ranks`.
        labels: [R] bool, those that were to be predicted.
    """

    def __init__(self, rows: range) -> None:
        self.rows = rows
        self.inputs = torch.zeros(len(rows), dtype=torch.bool)
        self.labels = torch.zeros(len(rows), dtype=torch.bool)

    def look(self, micro_batches: Iterable[Batch]) -> Sighting:
        """Find the new tokens in a rank's micro-batches, without taking note of them."""
        inputs, labels = [], []
        for batch in micro_batches:
            inputs.append(self._new(batch.input_ids.reshape(-1)[gets_gradient(batch)]))
            labels.append(self._new(batch.labels.reshape(-1)))
        return Sighting(torch.cat(inputs), torch.cat(labels))

    def add(self, sighting: Sighting) -> None:
        """Take note of what the weights were updated with."""
        self.inputs[sighting.inputs] = True
        self.labels[sighting.labels] = True

    def over_ranks(self) -> None:
        """Let every rank know what any has seen; a collective call."""
        seen = torch.stack((self.inputs, self.labels)).to(ranks.device(), torch.uint8)
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        self.inputs, self.labels = seen.bool().cpu()

    def as_state(self) -> dict[str, Any]:
        """Return what was seen, on whatever rank, in a few kilobytes for a checkpoint; a collective call."""
        self.over_ranks()
        bits = {name: _packed(getattr(self, name)) for name in ("inputs", "labels")}
        return {"version": _VERSION, "first": self.rows.start, "count": len(self.rows), **bits}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put `as_state` back, on any number of ranks.

        Raises:
            InputError: it is of another version or of other tokens.
        """
        found = tuple(state.get(name) for name in ("version", "first", "count"))
        if found != (_VERSION, self.rows.start, len(self.rows)):
            raise InputError(
                f"an account of new rows of version {found[0]}, {found[2]} from {found[1]} on, and this run's is of "
                f"version {_VERSION}, {len(self.rows)} from {self.rows.start} on",
                remedy="pass --new_rows_interval 0, or start from its modeling folder",
            )
        self.inputs, self.labels = (_unpacked(state[name], len(self.rows)) for name in ("inputs", "labels"))

    def _new(self, ids: torch.Tensor) -> torch.Tensor:
        """Keep new tokens, as numbers among them; a label of -100 is none."""
        numbers = ids - self.rows.start
        return numbers[(numbers >= 0) & (numbers < len(self.rows))]


def gets_gradient(batch: Batch) -> torch.Tensor:
    """Mark the positions whose input reaches a loss: a label is learned further on in the same document.

    Args:
        batch: a micro-batch of B rows of S tokens.

    Returns:
        [B * S] bool.
    """
    learned = (batch.labels.reshape(-1) != IGNORED).cumsum(0)
    bounds = batch.cu_seq_lens.long()
    of_piece = learned[bounds[1:] - 1].repeat_interleave(bounds.diff())
    return of_piece > learned


def _packed(bits: torch.Tensor) -> str:
    return base64.b64encode(np.packbits(bits.numpy()).tobytes()).decode("ascii")


def _unpacked(text: str, count: int) -> torch.Tensor:
    packed = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(packed, count=count).astype(bool))
