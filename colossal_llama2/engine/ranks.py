"""Starting the process group and talking across it: the few collective calls the rest of the project needs."""

from __future__ import annotations

import os
import random
import resource
import sys
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from colossal_llama2.engine import compat
from colossal_llama2.engine.nodes import lifeline

_host_group: dist.ProcessGroup | None = None
"""The ranks talking through host memory; None where the default group does, or nobody is to be talked to."""


def launch(seed: int, timeout_minutes: int = 30) -> None:
    """Join the process group of torchrun or `colossalai run`, or make one of a single process.

    The backend is NCCL on CUDA and gloo on a CPU.

    Args:
        seed: seeds python, numpy and torch alike on every rank; the data order does not depend on it being called.
        timeout_minutes: how long a rank waits in a collective for a peer that may be dead.
    """
    compat.install()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    timeout = timedelta(minutes=timeout_minutes)
    # ColossalAI's launch_from_torch offers no timeout and needs a launcher; the process group is all it would add.
    if "RANK" in os.environ:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            lifeline.die_with_parent()  # a torchrun that is killed leaves its ranks behind otherwise
        lifeline.watch_connections()
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    global _host_group  # noqa: PLW0603  there is one process group a process, and this belongs to it
    _host_group = None
    if backend == "nccl" and dist.get_world_size() > 1:
        _host_group = dist.new_group(backend="gloo", timeout=timeout)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_dropout(seed: int, data_rank: int) -> None:
    """Let ranks that see different data drop different activations; ranks that share a batch must draw alike.

    Args:
        seed: the run's.
        data_rank: number of this rank among those with different data.
    """
    torch.manual_seed(seed + data_rank)


def close() -> None:
    """Leave the process group, if there is one.

    On the way out of a failure it is left as it is: taking it down waits for peers that wait for this rank, and the
    traceback would not be seen before they give up. The end of the process takes it down at once.
    """
    failing = sys.exc_info()[0] is not None
    if dist.is_initialized() and not (failing and dist.get_world_size() > 1):
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process among all, from 0."""
    return dist.get_rank()


def world_size() -> int:
    """How many processes take part."""
    return dist.get_world_size()


def is_first() -> bool:
    """Tell whether this is the rank that writes and speaks."""
    return rank() == 0


def device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a host tensor to this rank's device behind what is queued there, without waiting for it."""
    if not torch.cuda.is_available():
        return tensor
    return tensor.pin_memory().to(device(), non_blocking=True)  # from memory that is not pinned a copy waits


def barrier() -> None:
    """Wait for every rank."""
    dist.barrier()


def sum_over_ranks(*values: float) -> list[float]:
    """Add each value over all ranks, in fp64, in one call; every rank gets the same sums.

    They go through host memory: what is known there need not wait for the device.
    """
    if world_size() == 1:
        return [float(value) for value in values]
    totals = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(totals, group=_host_group)
    return [float(total) for total in totals.tolist()]


def texts_of_ranks(text: str) -> list[str]:
    """Return every rank's text, in order of rank."""
    texts: list[str] = [""] * world_size()
    dist.all_gather_object(texts, text)
    return texts


def largest_over_ranks(value: float) -> float:
    """Return the largest of the ranks' values."""
    largest = torch.tensor(value, dtype=torch.float64, device=device())
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return float(largest.item())


def peak_memory() -> int:
    """Peak so far in bytes: what this rank allocated on CUDA, or the process's resident set on a CPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
