"""What keeps weights whole between a number that is not finite and the moment the host gets to know of it."""

from __future__ import annotations

from typing import Any

import torch


class Guard:
    """Keeps an optimizer from updating anything once a number was not finite, without the host having to look.

    What is not finite is noticed by the host a step later; until then the weights must stay as they are.

    Attributes:
        blocked: scalar fp32 on the device, 1 from the first number on that was not finite.
    """

    def __init__(self, device: torch.device) -> None:
        self.blocked = torch.zeros((), device=device)

    @classmethod
    def of(cls, optimizer: Any, device: torch.device) -> Guard:
        """Return the guard of a `FusedAdamW`, which has one from now on."""
        if optimizer.guard is None:
            optimizer.guard = cls(device)
        guard: Guard = optimizer.guard
        return guard

    def block_unless_finite(self, value: torch.Tensor) -> None:
        """Update nothing any more if a scalar is not finite."""
        self.blocked = torch.maximum(self.blocked, value.isfinite().logical_not().to(self.blocked.dtype))
