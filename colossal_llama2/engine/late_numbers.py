"""Figures on their way from the device to the host: asked for without waiting, read when they are there."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist


class LateNumbers:
    """A few numbers of the device, copied to the host behind the work that is queued.

    Reading a tensor's value lets the host wait until the device has done all that it was given, and the device then
    waits for the host. A copy into pinned memory with an event behind it is waited for alone: what was queued after it
    goes on meanwhile. On a CPU a number is there when the call that makes it returns.

    Args:
        values: [N], any floating dtype.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        self._there_at = time.perf_counter()

    def read(self) -> tuple[list[float], float]:
        """Wait for them; return them, and when they were there by `time.perf_counter`."""
        if self._event is not None:
            self._event.synchronize()
            self._event, self._there_at = None, time.perf_counter()
        return [float(value) for value in self._values.tolist()], self._there_at


def add_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Add each of the device's values [N] over all ranks, in place; on CUDA this is queued and not waited for."""
    if dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values
