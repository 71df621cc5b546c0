"""Curves from run folders: what is read, what is refused, and that a picture comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image
from matplotlib import pyplot as plt

from colossal_llama2.errors import InputError
from colossal_llama2.report.curves import METRICS_FILE, Line, draw_bars, draw_losses, draw_measures, read_run, smoothed


def write_run(run_dir: Path, losses: list[Any]) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    lines = [{"step": i, "loss": loss, "seconds": 0.5} for i, loss in enumerate(losses, 1)]
    (run_dir / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return run_dir


def test_a_run_is_read_as_written(tmp_path: Path) -> None:
    run = read_run("inject", write_run(tmp_path, [3.0, None, 1]))
    assert (run.name, run.steps, run.losses, run.seconds) == ("inject", [1, 3], [3.0, 1.0], [0.5, 0.5, 0.5])


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_run("a", tmp_path)
    write_run(tmp_path, [])
    with pytest.raises(InputError, match="holds no step"):
        read_run("a", tmp_path)
    (tmp_path / METRICS_FILE).write_text('{"text": "not a step"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics\.jsonl:1"):
        read_run("a", tmp_path)


def test_losses_become_a_picture_with_every_run_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [read_run(name, write_run(tmp_path / name, [4.0, 3.0, 2.0])) for name in ("align", "inject")]
    figures: list[Any] = []
    monkeypatch.setattr(plt, "close", figures.append)
    draw_losses({"adapted": runs, "unadapted": runs[:1]}, tmp_path / "loss.png")
    height, width, _ = image.imread(tmp_path / "loss.png").shape
    assert width > height > 400
    (figure,) = figures
    assert [axis.get_title() for axis in figure.axes] == ["adapted", "unadapted"]
    assert all(axis.get_xlabel() and axis.get_ylabel() for axis in figure.axes)
    named = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in named] == ["align", "inject"]
    # The second run goes on where the first one ended.
    assert list(named[1].get_xdata()) == [4, 5, 6]


def test_measures_become_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plt, "close", figures.append)
    lines = [
        Line("adapted", [0, 1, 2], [16.0, 2.0, 0.8], ["expanded", "align", "inject"]),
        Line("old", [0, 2], [16, 2]),
    ]
    close = [Line("adapted", [0, 1], [0.7, 0.72])]
    draw_measures({"Chinese": lines, "English": close}, "bits per byte", tmp_path / "bits.png")
    assert image.imread(tmp_path / "bits.png").ndim == 3
    chinese, english = figures[0].axes
    assert (chinese.get_yscale(), english.get_yscale()) == ("log", "linear")
    assert {"expanded", "align", "inject"} <= {text.get_text() for text in chinese.texts}


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_smoothing_stays_between_the_extremes_and_starts_at_the_first(values: list[float]) -> None:
    averages = smoothed(values)
    assert len(averages) == len(values)
    assert averages[0] == pytest.approx(values[0])
    assert all(min(values) - 1e-9 <= average <= max(values) + 1e-9 for average in averages)


def test_bars_become_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plt, "close", figures.append)
    panels = {"Chinese": {"base": [[2.0]], "mean": [[3.0, 3.2], [2.5, 2.3]]}, "English": {"base": [[1.0]]}}
    draw_bars(panels, ["before", "after"], "bits per byte", tmp_path / "bars.png")
    assert image.imread(tmp_path / "bars.png").ndim == 3
    chinese, english = figures[0].axes
    assert [bar.get_height() for bar in chinese.patches] == pytest.approx([2.0, 3.1, 2.4])
    dots = [list(line.get_ydata()) for line in chinese.lines]
    assert dots == [[3.0, 3.2], [2.5, 2.3]]  # a single value has none
    assert [text.get_text() for text in chinese.get_xticklabels()] == ["base", "mean"]
    assert [bar.get_height() for bar in english.patches] == [1.0]
