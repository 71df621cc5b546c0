"""The learning rate over a run."""

from __future__ import annotations

import math

DEFAULT_WARMUP_SHARE = 0.025
FINAL_SHARE = 0.1


def default_warmup_steps(total_steps: int) -> int:
    """Return 2.5% of the steps, as Colossal-LLaMA-2 warmed up."""
    return int(total_steps * DEFAULT_WARMUP_SHARE)


def cosine_multiplier(step: int, total_steps: int, warmup_steps: int) -> float:
    """Factor on the peak learning rate for a step: linear warm-up, then a cosine down to a tenth.

    Args:
        step: number of steps done, from 0; past the end the factor stays at a tenth.
        total_steps: steps of the whole run.
        warmup_steps: steps of the warm-up; the first one already learns, the last one reaches the peak.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    decay_steps = max(total_steps - 1 - warmup_steps, 1)
    progress = min((step - warmup_steps) / decay_steps, 1.0)
    return FINAL_SHARE + (1.0 - FINAL_SHARE) * 0.5 * (1.0 + math.cos(math.pi * progress))
