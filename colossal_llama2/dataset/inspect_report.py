"""A prepared corpus as a picture: how long documents are, how full rows are, what each bucket is made of."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from colossal_llama2 import cli
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.outputs import whole_file

Counts = npt.NDArray[np.int64]

# Okabe and Ito's colours, told apart by colour-blind readers too; the last is for what has no colour of its own.
_COLOURS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_OTHERS: Final = "#999999"
_FILLS: Final = {
    "under\n50%": 0.5, "50 to\n90%": 0.9, "90 to\n99%": 0.99, "99 to\n99.9%": 0.999, "99.9 to\n100%": 1.0,
}  # fmt: skip
_BARS: Final = 64
_HAN_FONTS: Final = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei", "Droid Sans Fallback", "SimHei", "Microsoft YaHei", "PingFang SC", "AR PL UMing CN",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """How long the rows of a corpus are, and the pieces in them; L is the most tokens a row can hold.

    Attributes:
        rows: [L + 1] int64, rows of each length.
        whole: [L + 1] int64, pieces of each length that are a document whole: they begin and end as one does.
        cut: [L + 1] int64, the other pieces.
    """

    rows: Counts
    whole: Counts
    cut: Counts

    @property
    def max_length(self) -> int:
        """The most tokens a row can hold."""
        return len(self.rows) - 1


def measure_shape(corpus: PreparedCorpus, bos_token_id: int | None, eos_token_id: int | None) -> Shape:
    """Look at every row, a row at a time, and count lengths.

    Args:
        corpus: the rows.
        bos_token_id: what a document begins with, if anything. Where every piece begins with it, a document's last
            piece counts as whole.
        eos_token_id: what a document ends with, if anything.
    """
    shape = Shape(*(np.zeros(corpus.max_length + 1, dtype=np.int64) for _ in range(3)))
    for index in range(corpus.num_rows):
        row = corpus.row(index)
        shape.rows[len(row.input_ids)] += 1
        ends = np.cumsum(row.seq_lens, dtype=np.int64)
        is_whole = np.ones(len(ends), dtype=np.bool_)
        if bos_token_id is not None:
            is_whole &= row.input_ids[ends - row.seq_lens] == bos_token_id
        if eos_token_id is not None:
            is_whole &= row.input_ids[ends - 1] == eos_token_id
        np.add.at(shape.whole, row.seq_lens[is_whole], 1)
        np.add.at(shape.cut, row.seq_lens[~is_whole], 1)
    return shape


def rows_by_fill(rows: Counts) -> dict[str, int]:
    """Count rows by how full they are; a full row is not among the nearly full.

    Args:
        rows: [L + 1] int64, rows of each length.
    """
    full = len(rows) - 1
    share = np.arange(len(rows)) / full
    counts, lowest = {}, 0.0
    for name, highest in _FILLS.items():
        counts[name] = int(rows[(share >= lowest) & (share < highest)].sum())
        lowest = highest
    return {**counts, "full": int(rows[full])}


def draw_report(shape: Shape, tokens_per_bucket: Mapping[str, Sequence[int]], path: Path) -> None:
    """Draw lengths, fill, and categories per bucket.

    Args:
        shape: how long rows and pieces are.
        tokens_per_bucket: category to its tokens in each bucket; without any, that panel is left out.
        path: the PNG file, replaced if it exists.
    """
    import matplotlib  # half a second that only a picture is worth
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.family": _font_families()}), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = Figure(layout="constrained")
        _draw_panels(figure, shape, tokens_per_bucket)
        with whole_file(path, overwrite=True) as work:
            figure.savefig(work, dpi=120, format="png")
    if any("missing from font" in str(warning.message) for warning in caught):
        cli.warn(f"{path}: no font of this machine has all characters of the categories' names (Noto Sans CJK has)")


def _draw_panels(figure: Any, shape: Shape, tokens_per_bucket: Mapping[str, Sequence[int]]) -> None:
    num_panels = 3 if tokens_per_bucket else 2
    figure.set_size_inches(5.6 * num_panels + (2 if tokens_per_bucket else 0), 4.4)
    axes = figure.subplots(1, num_panels, width_ratios=[1, 1, 1.35][:num_panels])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
    _draw_lengths(axes[0], shape)
    _draw_fill(axes[1], shape)
    if tokens_per_bucket:
        _draw_buckets(axes[2], tokens_per_bucket)


def _draw_lengths(axis: Any, shape: Shape) -> None:
    bounds = np.unique(np.geomspace(1, shape.max_length + 1, 41).astype(np.int64))
    lengths = np.arange(len(shape.whole))
    bins = [np.histogram(lengths, bounds, weights=counts)[0] for counts in (shape.whole, shape.cut)]
    widths = np.diff(bounds)
    below: Any = 0
    labels = [
        f"{counts.sum():,} {what}" for counts, what in ((shape.whole, "whole"), (shape.cut, "pieces of cut ones"))
    ]
    for heights, colour, label in zip(bins, _COLOURS, labels, strict=False):
        axis.bar(bounds[:-1], heights, widths, below, align="edge", color=colour, label=label, linewidth=0)
        below = below + heights
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set(title="Documents as they lie in rows", xlabel="length (tokens)", ylabel="number")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.legend(frameon=False, loc="upper left")
    axis.set_ylim(top=1.25 * max(1.0, float(np.max(below))))  # room for the legend


def _draw_fill(axis: Any, shape: Shape) -> None:
    counts = rows_by_fill(shape.rows)
    rows = max(1, int(shape.rows.sum()))
    fill = float((shape.rows * np.arange(len(shape.rows))).sum()) / (rows * shape.max_length)
    drawn = axis.bar(list(counts), [100 * count / rows for count in counts.values()], color=_COLOURS[2])
    axis.bar_label(drawn, [f"{count:,}" for count in counts.values()], fontsize=9, padding=2)
    axis.set(title=f"Rows of {shape.max_length:,} tokens: {fill:.3%} full", ylabel="rows (%; number above)")
    axis.set_ylim(0, 109)
    axis.tick_params(axis="x", labelsize=9)


def _draw_buckets(axis: Any, tokens_per_bucket: Mapping[str, Sequence[int]]) -> None:
    stacked = largest_and_others(tokens_per_bucket, len(_COLOURS))
    buckets = np.arange(len(stacked[0][1]))
    colours = [*_COLOURS[: len(stacked)], _OTHERS][: len(stacked)]
    labels = [_label(name) for name, _ in stacked]
    millions = [tokens / 1e6 for _, tokens in stacked]
    if len(buckets) <= _BARS:
        below = np.zeros(len(buckets))
        for label, heights, colour in zip(labels, millions, colours, strict=True):
            axis.bar(buckets, heights, 0.85, below, color=colour, label=label)
            below += heights
    else:
        axis.stackplot(buckets, millions, colors=colours, labels=labels, step="mid")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(title="Categories in each bucket", xlabel="bucket", ylabel="tokens (millions)")
    handles, named = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], named[::-1], frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)


def largest_and_others(tokens_per_bucket: Mapping[str, Sequence[int]], most: int) -> list[tuple[str, Counts]]:
    """Keep the largest categories, in their order, and add up the rest under one name.

    Args:
        tokens_per_bucket: category to its tokens in each bucket.
        most: how many are kept.
    """
    arrays = {name: np.asarray(tokens, dtype=np.int64) for name, tokens in tokens_per_bucket.items()}
    order = sorted(arrays, key=lambda name: -int(arrays[name].sum()))
    kept = [(name, arrays[name]) for name in order[:most]]
    rest = order[most:]
    return [*kept, (f"{len(rest):,} others", np.sum([arrays[name] for name in rest], axis=0))] if rest else kept


def _label(name: str) -> str:
    """Shorten a name for a legend; a dollar sign would begin a formula, an underscore in front hide the entry."""
    cut = name if len(name) <= 28 else f"{name[:27]}…"
    return f" {cut}".replace("$", r"\$")


def _font_families() -> list[str]:
    """Name the default font and, for what it cannot draw, those of this machine that have Chinese characters."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in _HAN_FONTS if name in installed)]
