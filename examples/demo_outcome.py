"""What the demo measured: the table, the curve, the summary, and whether its story holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from colossal_llama2.outputs import whole_file
from colossal_llama2.report.curves import Line, draw_measures
from colossal_llama2.report.evaluate import align_columns

# What the demo stands for; it fails if this does not come out.
MOST_CHINESE_TOKENS = 0.5  # per character, of the base vocabulary's
MOST_CHINESE_BITS = 0.8  # of the unadapted model's, after the same training time
MOST_ENGLISH_BITS = 1.05  # of the base model's


@dataclass(frozen=True)
class Point:
    """A model to measure.

    Attributes:
        road: ``base``, ``adapted`` or ``control``.
        name: where on its road it stands.
        model: its folder.
        seconds: training time since the base model.
    """

    road: str
    name: str
    model: Path
    seconds: float


@dataclass(frozen=True)
class Measured:
    """A model and its measures, by language."""

    point: Point
    tokens_per_character: dict[str, float]
    bits_per_byte: dict[str, float]


def running_total(values: Sequence[float]) -> list[float]:
    """Return the sum up to and including each value."""
    totals, total = [], 0.0
    for value in values:
        total += value
        totals.append(total)
    return totals


def read_measures(points: Sequence[Point], languages: dict[str, str], results: Path) -> list[Measured]:
    """Read what `tools/evaluate.py` wrote about the points; `languages` maps its files to languages."""
    scores = json.loads(results.read_text(encoding="utf-8"))["scores"]
    of_model: dict[str, dict[str, dict[str, float]]] = {}
    for score in scores:
        of_model.setdefault(score["model"], {})[languages[score["file"]]] = score
    return [
        Measured(
            point,
            {language: score["tokens_per_character"] for language, score in of_model[str(point.model)].items()},
            {language: score["bits_per_byte"] for language, score in of_model[str(point.model)].items()},
        )
        for point in points
    ]


def table(measured: Sequence[Measured]) -> str:
    """Lay the measures out: a line a model, Chinese and English side by side."""
    header = ("model", "", "trained", "tokens/char zh", "en", "bits/byte zh", "en")
    rows = [
        (
            one.point.road,
            one.point.name,
            f"{one.point.seconds:.0f} s",
            *(f"{one.tokens_per_character[language]:.3f}" for language in ("chinese", "english")),
            *(f"{one.bits_per_byte[language]:.3f}" for language in ("chinese", "english")),
        )
        for one in measured
    ]
    return align_columns([header, *rows])


def ends(measured: Sequence[Measured]) -> tuple[Measured, Measured, Measured]:
    """Return the base model, the adapted one at the end of its road, and the control at the end of its own."""
    base, adapted, control = (
        [one for one in measured if one.point.road == road][-1] for road in ("base", "adapted", "control")
    )
    return base, adapted, control


def judge(measured: Sequence[Measured]) -> list[str]:
    """Return a sentence for each promise that was not kept."""
    base, adapted, control = ends(measured)
    tokens = adapted.tokens_per_character["chinese"] / base.tokens_per_character["chinese"]
    chinese = adapted.bits_per_byte["chinese"] / control.bits_per_byte["chinese"]
    english = adapted.bits_per_byte["english"] / base.bits_per_byte["english"]
    shortfalls = []
    if not tokens <= MOST_CHINESE_TOKENS:
        shortfalls.append(f"Chinese takes {tokens:.0%} of the base vocabulary's tokens, not {MOST_CHINESE_TOKENS:.0%}")
    if not chinese <= MOST_CHINESE_BITS:
        shortfalls.append(
            f"Chinese takes {chinese:.0%} of the bits of the unadapted model, not {MOST_CHINESE_BITS:.0%} or less"
        )
    if not english <= MOST_ENGLISH_BITS:
        shortfalls.append(f"English takes {english:.0%} of the base model's bits, not {MOST_ENGLISH_BITS:.0%} or less")
    return shortfalls


def story(measured: Sequence[Measured]) -> str:
    """Say in words what the table shows."""
    base, adapted, control = ends(measured)
    return (
        f"Chinese went from {base.tokens_per_character['chinese']:.2f} to "
        f"{adapted.tokens_per_character['chinese']:.2f} tokens a character. After the same training time the adapted "
        f"model needs {adapted.bits_per_byte['chinese']:.2f} bits per byte of Chinese, the one with the old vocabulary "
        f"{control.bits_per_byte['chinese']:.2f}.\nEnglish: {base.bits_per_byte['english']:.2f} before, "
        f"{adapted.bits_per_byte['english']:.2f} after."
    )


def draw_bits_per_byte(measured: Sequence[Measured], path: Path) -> None:
    """Draw bits per byte over training time: the adapted model against the one with the old vocabulary."""
    panels = {}
    for language in ("chinese", "english"):
        lines = []
        for name, roads in (("adapted", ("adapted",)), ("old vocabulary", ("base", "control"))):
            points = [one for one in measured if one.point.road in roads]
            lines.append(
                Line(
                    name,
                    [one.point.seconds / 60 for one in points],
                    [one.bits_per_byte[language] for one in points],
                    [one.point.name for one in points] if name == "adapted" else (),
                )
            )
        panels[f"{language.capitalize()}, held-out text"] = lines
    draw_measures(panels, "bits per byte", path)


def write_summary(
    measured: Sequence[Measured],
    samples: dict[str, dict[str, str]],
    shortfalls: Sequence[str],
    seconds: float,
    path: Path,
) -> None:
    """Write everything that came out as JSON."""
    lines = []
    for one in measured:
        line = asdict(one)
        line["point"]["model"] = str(one.point.model)
        lines.append(line.pop("point") | line)
    content = {"seconds": seconds, "models": lines, "samples": samples, "shortfalls": list(shortfalls)}
    with whole_file(path, overwrite=True) as work:
        work.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
