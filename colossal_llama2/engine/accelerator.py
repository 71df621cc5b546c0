"""A CPU that ColossalAI can train on: one in-order queue, so streams and events do nothing."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import psutil
import torch


class _InOrderQueue:
    """Stands for a CUDA stream or event where everything already happens in order."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> _InOrderQueue:
        return _InOrderQueue()


def cpu_accelerator() -> Any:
    """Build an accelerator for ``colossalai.accelerator.set_accelerator`` that works without a GPU."""
    from colossalai.accelerator.cpu_accelerator import CpuAccelerator

    class WorkingCpuAccelerator(CpuAccelerator):
        """Answers what ColossalAI's own CPU accelerator raises for. Memory is the process's resident set, in bytes."""

        def current_device(self) -> torch.device:
            return torch.device("cpu")

        def set_device(self, device: Any = None) -> None:
            pass

        def synchronize(self, device: Any = None) -> None:
            pass

        def device_count(self) -> int:
            return 1

        def get_device_name(self, device: Any = None) -> str:
            return "cpu"

        def get_device_properties(self, device: Any = None) -> SimpleNamespace:
            return SimpleNamespace(total_memory=psutil.virtual_memory().total)

        def empty_cache(self) -> None:
            pass

        def get_rng_state(self, device: Any = None) -> torch.Tensor:
            return torch.get_rng_state()

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        def manual_seed_all(self, seed: int) -> None:
            torch.manual_seed(seed)

        def memory_allocated(self, device: Any = None) -> int:
            return psutil.Process().memory_info().rss

        max_memory_allocated = memory_allocated
        memory_reserved = memory_allocated

        def reset_peak_memory_stats(self, device: Any = None) -> None:
            pass

        reset_max_memory_allocated = reset_peak_memory_stats

        def Stream(self, *args: Any, **kwargs: Any) -> _InOrderQueue:
            return _InOrderQueue()

        Event = Stream
        current_stream = Stream
        default_stream = Stream

        def set_stream(self, stream: Any) -> None:
            pass

        def stream(self, stream: Any) -> nullcontext[None]:
            return nullcontext()

    return WorkingCpuAccelerator()
