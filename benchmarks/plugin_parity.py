"""Every plugin against one process of plain PyTorch: the table in docs/plugins.md, every cell run.

    python benchmarks/plugin_parity.py [--only 3d_tp2,zero2] [--output FILE.json] [--table FILE.md]

A tiny random Llama (4 layers, 4 heads over 2, 401 rows, untied) learns 5 steps of 8 rows. The reference runs document
by document in a loop of its own. Curves are compared in losses and in gradient norms before clipping, because Adam
hides a gradient of the wrong scale; with an epsilon of 1e-4, because 1e-8 blows rounding noise in tiny gradients up to
full steps. Resuming is compared to the last bit with a run that was not interrupted. Adapters are compared with one
process.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from benchmarks.parity_reference import Curve, PlainSteps, plain_curve
from benchmarks.tiny_inputs import make_tiny_inputs
from benchmarks.warm_ranks import Finished, WarmRanks
from colossal_llama2 import cli
from colossal_llama2.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
STEPS, ROWS = 5, 8
EXACT, CLOSE = (1e-5, 1e-4), (0.05, 0.05)  # largest difference of losses, and relative one of gradient norms


@dataclass(frozen=True)
class Division:
    """One way to spread the model: its flags, how many ranks share the same rows, and what it computes in."""

    name: str
    flags: tuple[str, ...]
    ranks: tuple[int, ...]
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")
    same_rows: int = 1
    micro_batches: int = 1

    def batch_flags(self, ranks: int, accumulate: bool = False) -> list[str]:
        """Divide the step's rows over micro-batches."""
        own = ROWS * self.same_rows // ranks
        accumulation = max(self.micro_batches, 2 if accumulate else 1)
        return ["--micro_batch_size", str(own // accumulation), "--accumulation_steps", str(accumulation)]


def _3d(name: str, flags: str, ranks: Iterable[int], same_rows: int, micro_batches: int = 1) -> Division:
    zero = "--zero" in flags
    precisions = ("bf16", "fp16") if zero else ("fp32", "bf16", "fp16")
    own = ("--plugin", "3d", *flags.split(), *(() if zero else ("--zero", "0")))
    return Division(name, own, tuple(ranks), precisions, same_rows, micro_batches)


DIVISIONS = (
    Division("ddp", ("--plugin", "ddp"), (1, 2, 4)),
    Division("zero2", ("--plugin", "zero2"), (1, 2, 4)),
    Division("zero2_cpu", ("--plugin", "zero2_cpu"), (1, 2, 4)),
    Division("gemini", ("--plugin", "gemini"), (1, 2, 4), ("bf16", "fp16")),
    Division("gemini_auto", ("--plugin", "gemini_auto"), (1, 2, 4), ("bf16", "fp16")),
    _3d("3d", "", (1, 2, 4), 1),
    _3d("3d zero1", "--zero 1", (2, 4), 1),
    _3d("3d zero2", "--zero 2", (2, 4), 1),
    _3d("3d tp2", "--tp 2", (2, 4), 2),
    _3d("3d pp2", "--pp 2", (2, 4), 2, 2),
    _3d("3d pp2 interleaved", "--pp 2 --pp_chunks 2", (2,), 2, 2),
    _3d("3d tp2 pp2", "--tp 2 --pp 2", (4,), 4, 2),
    _3d("3d sp2 all_to_all", "--sp 2", (2, 4), 2),
    _3d("3d sp2 split_gather", "--tp 2 --sp 2 --sp_mode split_gather", (2, 4), 2),
    _3d("3d tp2 zero1", "--tp 2 --zero 1", (4,), 2),
    _3d("3d pp2 zero1", "--pp 2 --zero 1", (4,), 2, 2),
    _3d("3d pp4", "--pp 4", (4,), 4, 4),
)


@dataclass(frozen=True)
class ParitySettings:
    """Run every plugin in every way and write down how far it is from one process."""

    output: Path = ROOT / "benchmarks" / "results" / "plugin_parity.json"
    """Where the figures are written."""
    table: Path = ROOT / "docs" / "plugins.md"
    """The page whose table, between its two marks, is replaced."""
    only: tuple[str, ...] = ()
    """Names of divisions to run, with underscores for spaces (default: all); the other rows stay as they are."""


@dataclass(frozen=True)
class Cell:
    """What one cell found: `passed`, and the figures or the sentence behind it."""

    passed: bool
    detail: str


class Bench:
    """Runs train.py on warm ranks, each time in a fresh folder."""

    def __init__(self, work: Path, warm: WarmRanks) -> None:
        self._work, self._warm = work, warm
        # divides in every way but one, its vocabulary
        sizes: dict[str, Any] = {"vocab_size": 401, "num_hidden_layers": 4, "num_attention_heads": 4}
        self.model_dir, self.corpus_dir = make_tiny_inputs(work, initializer_range=0.1, **sizes)
        self.references: dict[tuple[str, frozenset[int]], Curve] = {}
        self._count = 0

    def train(self, ranks: int, *flags: str) -> tuple[Finished, Path]:
        """Train; return what came of it and the run's folder."""
        self._count += 1
        folder = self._work / f"run-{self._count}"
        common = {"dataset": self.corpus_dir, "pretrained": self.model_dir, "save_dir": folder, "max_steps": STEPS}
        numbers = {"max_length": 48, "lr": 1e-2, "warmup_steps": 2, "adam_eps": 1e-4, "seed": 3, "save_interval": 0}
        spelled = [str(part) for name, value in {**common, **numbers}.items() for part in (f"--{name}", value)]
        return self._warm.run(ranks, [*spelled, *flags], seconds=120), folder

    def reference(self, kind: str, left_out: frozenset[int] = frozenset()) -> Curve:
        """Return the curve of one process: plain PyTorch, or for adapters one process of ours."""
        key = kind, left_out
        if key not in self.references:
            if kind == "lora":
                flags = ("--plugin", "ddp", "--mixed_precision", "fp32", "--micro_batch_size", str(ROWS), *LORA)
                self.references[key] = read_curve(self.train(1, *flags)[1])
            else:
                plan = PlainSteps(STEPS, ROWS, left_out)
                self.references[key] = plain_curve(self.model_dir, self.corpus_dir, plan, kind == "freezing")
        return self.references[key]


LORA = ("--lora_rank", "4", "--lora_train_embeddings", "yes")
COLUMNS = ("accumulation", "checkpointing", "freezing", "lora", "resume", "other ranks", "from zero2", "to zero2")


def main(settings: ParitySettings) -> int:
    """Fill the table; exit 1 when a cell failed."""
    names = [name.replace("_", " ") for name in settings.only]
    chosen = [d for d in DIVISIONS if not names or d.name.replace("_", " ") in names]
    if not chosen:
        raise InputError("--only names no division", remedy="choose from " + ", ".join(d.name for d in DIVISIONS))
    table: dict[str, dict[str, Cell]] = {}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, WarmRanks() as warm:
        bench = Bench(Path(temporary), warm)
        for division in chosen:
            row = table[division.name] = dict(_row(bench, division))
            print(
                division.name,
                {name: ("ok " if cell.passed else "NO ") + cell.detail for name, cell in row.items()},
                flush=True,
            )
    seconds = round(time.perf_counter() - began)
    result: dict[str, Any] = {"machine": describe_machine(), "seconds": seconds, "cells": {}}
    if settings.only and settings.output.is_file():
        result = json.loads(settings.output.read_text(encoding="utf-8"))
    rows = {name: {column: vars(cell) for column, cell in row.items()} for name, row in table.items()}
    rows = {division.name: {**result["cells"], **rows}.get(division.name, {}) for division in DIVISIONS}
    settings.output.write_text(json.dumps({**result, "cells": rows}, indent=1) + "\n", encoding="utf-8")
    write_table(settings.table, {name: {c: Cell(**cell) for c, cell in row.items()} for name, row in rows.items()})
    return 0 if all(cell.passed for row in table.values() for cell in row.values()) else 1


def _row(bench: Bench, division: Division) -> Iterator[tuple[str, Cell]]:
    """Run the cells of one division."""
    least = division.ranks[0]
    best = division.precisions[0]
    for ranks in division.ranks:
        for precision in division.precisions if ranks == least else (best,):
            flags = [*division.batch_flags(ranks), "--mixed_precision", precision]
            yield f"{precision} x{ranks}", _curve(bench, division, ranks, flags, "everything")
    many = division.ranks[-1]
    half = ["--mixed_precision", best]
    yield "accumulation", _curve(bench, division, many, [*division.batch_flags(many, True), *half], "everything")
    plain = [*division.batch_flags(many), *half]
    yield "checkpointing", _curve(bench, division, many, [*plain, "--use_grad_checkpoint"], "everything")
    yield "freezing", _curve(bench, division, many, [*plain, "--freeze_non_embeds_params"], "freezing")
    yield "lora", _curve(bench, division, many, [*plain, *LORA], "lora")
    yield "resume", _resume(bench, division)
    yield "other ranks", _reshape(bench, division, division, division.ranks[0])
    zero2 = replace(DIVISIONS[1], precisions=division.precisions)
    yield "from zero2", _reshape(bench, zero2, division, division.ranks[0])
    yield "to zero2", _reshape(bench, division, zero2, 2)


def _curve(bench: Bench, division: Division, ranks: int, flags: list[str], kind: str) -> Cell:
    finished, folder = bench.train(ranks, *division.flags, *flags)
    if refused := _refusal(finished):
        return refused
    precision = flags[flags.index("--mixed_precision") + 1]
    left_out = overflowed(folder)
    cell = compare(read_curve(folder), bench.reference(kind, left_out), EXACT if precision == "fp32" else CLOSE)
    return replace(cell, detail=f"{cell.detail}, {len(left_out)} overflowed") if left_out else cell


def _resume(bench: Bench, division: Division) -> Cell:
    """Compare with the uninterrupted run, bit for bit, in the last precision: half, whose masters are easily lost."""
    ranks = division.ranks[-1]
    flags = [*division.flags, *division.batch_flags(ranks), "--mixed_precision", division.precisions[-1]]
    whole, folder = bench.train(ranks, *flags, "--save_interval", "3")
    if refused := _refusal(whole):
        return refused
    resumed, second = bench.train(ranks, *flags, "--load_checkpoint", str(folder / "epoch-0_step-3"))
    if refused := _refusal(resumed):
        return refused
    same = read_curve(second) == read_curve(folder)[3:]
    return Cell(same, "to the last bit" if same else f"{read_curve(second)} instead of {read_curve(folder)[3:]}")


def _reshape(bench: Bench, source: Division, target: Division, ranks: int) -> Cell:
    """Train three steps one way, the rest another way, and compare with the reference all along."""
    precision = ["--mixed_precision", target.precisions[0]]
    before = source.ranks[-1]
    first, folder = bench.train(before, *source.flags, *source.batch_flags(before), *precision, "--save_interval", "3")
    if refused := _refusal(first):
        return refused
    checkpoint = str(folder / "epoch-0_step-3")
    flags = [*target.flags, *target.batch_flags(ranks), *precision, "--load_checkpoint", checkpoint]
    rest, second = bench.train(ranks, *flags)
    if refused := _refusal(rest):
        return refused
    tolerance = EXACT if precision[1] == "fp32" else CLOSE
    return compare(read_curve(second), bench.reference("everything")[3:], tolerance)


def _refusal(finished: Finished) -> Cell | None:
    if finished.code == 0:
        return None
    error = [line for line in finished.output.splitlines() if line.startswith("error: ")]
    if finished.code == 2 and error:
        return Cell(True, "refused: " + error[-1].removeprefix("error: "))
    return Cell(False, f"exit code {finished.code}: {finished.output.strip()[-600:]}")


def read_curve(folder: Path) -> Curve:
    """Return loss and gradient norm of each step of a run."""
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines]


def overflowed(folder: Path) -> frozenset[int]:
    """Return the steps of a run whose gradients overflowed fp16: the scale is too large at first, and comes down."""
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return frozenset(line["step"] for line in lines if line["skipped"])


def compare(ours: Curve, theirs: Curve, tolerance: tuple[float, float]) -> Cell:
    """Compare two curves in losses and in gradient norms."""
    if len(ours) != len(theirs) or not ours:
        return Cell(False, f"{len(ours)} steps instead of {len(theirs)}")
    loss = max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True))
    norm = max(abs(a / b - 1) for (_, a), (_, b) in zip(ours, theirs, strict=True) if a is not None)
    return Cell(loss < tolerance[0] and norm < tolerance[1], f"{loss:.0e} / {norm:.0e}")


def write_table(page: Path, table: dict[str, dict[str, Cell]]) -> None:
    """Replace the table between the page's marks."""
    begin, end = "<!-- plugin_parity: begin -->\n", "<!-- plugin_parity: end -->\n"
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(begin)
    _, found, tail = rest.partition(end)
    assert found, f"{page} has no marks for the table"
    curves = {column for row in table.values() for column in row if " x" in column}
    columns = [*sorted(curves, key=lambda column: (column[-1], column[:4] != "fp32", column)), *COLUMNS]
    notes: list[str] = []
    lines = ["| | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for name, row in table.items():
        cells = [_spell(row[column], notes) if column in row else "" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1)), ""]
    page.write_text(head + begin + "\n".join(lines) + "\n" + end + tail, encoding="utf-8")


def _spell(cell: Cell, notes: list[str]) -> str:
    if not cell.detail.startswith("refused: "):
        return cell.detail if cell.passed else f"**fails** ({cell.detail.splitlines()[0][:80]})"
    note = cell.detail.removeprefix("refused: ")
    if note not in notes:
        notes.append(note)
    return f"refused ({notes.index(note) + 1})"


if __name__ == "__main__":
    cli.run(ParitySettings, main, leave=sys.exit)
