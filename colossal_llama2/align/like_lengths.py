"""Prompts divided into batches whose padding is small."""

from __future__ import annotations

from collections.abc import Sequence

_LIKE_LENGTHS, _SLACK = 1.25, 8  # a batch's longest prompt has at most 1.25 times the shortest's tokens, and 8


def batches_of_like_lengths(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Divide prompts into batches whose padding is small.

    Args:
        lengths: tokens of each prompt.
        batch_size: most prompts of a batch.

    Returns:
        Numbers of prompts, every one once; the longest come first, so that a batch too large for the memory is found
        out at once.
    """
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    batches: list[list[int]] = []
    for place in order:
        longest = lengths[batches[-1][0]] if batches else 0
        fits = batches and len(batches[-1]) < batch_size and longest <= _LIKE_LENGTHS * lengths[place] + _SLACK
        if fits:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches
