"""The advice as a picture: what each size of the vocabulary saves and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from colossal_llama2.outputs import whole_file


def draw_advice(sizes: Sequence[int], panels: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw one panel a measure over the size of the vocabulary.

    Args:
        sizes: tokens of each vocabulary.
        panels: title to the measure at each size.
        path: the PNG file, replaced if it exists.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), squeeze=False)
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
        axis.plot(sizes, values, marker="o", color="#0072B2", linewidth=2)
        axis.set(title=title, xlabel="vocabulary (tokens)")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    figure.tight_layout()
    with whole_file(path, overwrite=True) as work:
        figure.savefig(work, dpi=120, format="png")
    plt.close(figure)
