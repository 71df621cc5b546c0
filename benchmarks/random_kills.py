"""A run that is killed a hundred times, at any moment, and ends as if nothing had happened.

    python benchmarks/random_kills.py [--kills 100] [--output FILE.json]

A tiny model is trained on two CPU ranks twice: in one go, and under SIGKILL. A third of the kills wait until a
checkpoint is being written, a tenth come while the run is starting, the others anywhere; some hit one rank alone.
Checkpoints are saved at once or by a thread, all of them kept or the newest two, as chance has it. Every restart says
``--load_checkpoint latest``. At the end every step's loss, gradient norm, learning rate and tokens, and every weight,
must be the uninterrupted run's to the last bit, and no restart may have lost more than the steps since the last
checkpoint.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from benchmarks.tiny_inputs import make_tiny_inputs
from benchmarks.warm_ranks import Started, WarmRanks
from colossal_llama2 import cli
from colossal_llama2.engine.checkpoint_folders import whole_checkpoints
from colossal_llama2.model.safetensors_stream import map_tensor, read_header

RESULTS = Path(__file__).resolve().parent / "results"
SAVE_INTERVAL = 3
RANKS = 2


@dataclass(frozen=True)
class RandomKills:
    """Kill a run again and again, and compare it with one that was left alone."""

    kills: int = 100
    """How often."""
    plugin: str = "zero2"
    """ColossalAI plugin."""
    mixed_precision: str = "bf16"
    """What forward and backward compute in."""
    seed: int = 0
    """Decides when and how."""
    output: Path = RESULTS / "random_kills.json"
    """Where the result is written."""


@dataclass
class Tally:
    """What the kills hit, and what they cost.

    Attributes:
        kills: by what was waited for.
        one_rank_alone: kills that hit a single rank.
        while_saving: kills after which a half-written checkpoint lay there.
        background: runs that saved in a thread.
        lost_steps: steps done again, for each kill.
        problems: broken promises.
    """

    kills: dict[str, int] = field(default_factory=lambda: {"saving": 0, "starting": 0, "anywhere": 0})
    one_rank_alone: int = 0
    while_saving: int = 0
    background: int = 0
    lost_steps: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def main(settings: RandomKills) -> int:
    """Do it, write the result, and return 1 when a promise is broken."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, WarmRanks() as warm:
        model, corpus = make_tiny_inputs(Path(temporary))
        flags = [
            *("--pretrained", model, "--dataset", corpus, "--max_length", 48, "--num_epochs", 1000),
            *("--plugin", settings.plugin, "--mixed_precision", settings.mixed_precision, "--lr", 1e-2),
        ]
        tally = kill_again_and_again(warm, flags, Path(temporary), settings.kills, settings.seed)
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "plugin": settings.plugin,
        "mixed_precision": settings.mixed_precision,
        "ranks": RANKS,
        "save_interval": SAVE_INTERVAL,
        "seconds": round(time.perf_counter() - began),
        **asdict(tally),
    }
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(
        f"{sum(tally.kills.values())} kills ({tally.kills}), {tally.while_saving} with a half-written checkpoint left: "
        f"at most {max(tally.lost_steps)} steps done again; {len(tally.problems)} broken promises"
    )
    for problem in tally.problems:
        print(problem, file=sys.stderr)
    return 1 if tally.problems else 0


def kill_again_and_again(warm: Any, flags: Sequence[object], work: Path, kills: int, seed: int = 0) -> Tally:
    """Train to the end with and without kills, and compare.

    Args:
        warm: ranks to run on, see `WarmRanks`.
        flags: of train.py, without folders, steps and saving.
        work: folder for both runs.
        kills: how often.
        seed: decides when and how.
    """
    draw = random.Random(seed)
    flags = [*flags, "--max_steps", 4 * kills + 20, "--log_interval", 1000]
    finished = warm.run(RANKS, [*flags, "--save_dir", work / "whole", "--save_interval", 0])
    if finished.code:
        raise RuntimeError(finished.output)
    killed, tally = work / "killed", Tally()
    for number in range(kills):
        start = [*flags, "--save_dir", killed, "--save_interval", SAVE_INTERVAL, *_way_of_saving(draw, tally)]
        _start_and_kill(warm, start, killed, draw, tally)
        if any(tally.problems):
            tally.problems = [f"kill {number + 1}: {problem}" for problem in tally.problems]
            return tally
    last = [*flags, "--save_dir", killed, "--save_interval", 0, *_continuation(killed)]
    finished = warm.run(RANKS, last)
    if finished.code:
        tally.problems.append(f"the last restart failed: {finished.output[-2000:]}")
    else:
        tally.problems += compare(work / "whole", killed)
    return tally


def compare(whole: Path, killed: Path) -> list[str]:
    """Return what differs between two finished runs."""
    names = ("step", "loss", "grad_norm", "lr", "tokens")
    curves = [[tuple(line[name] for name in names) for line in _metrics(folder)] for folder in (whole, killed)]
    problems = []
    if not curves[0] or curves[0] != curves[1]:
        different = next((a for a, b in zip(*curves, strict=False) if a != b), "their lengths")
        problems.append(f"the curves differ, first at {different}")
    weights = [_weights(folder / "modeling") for folder in (whole, killed)]
    if not weights[0] or weights[0] != weights[1]:
        problems.append("the finished models differ")
    return problems


def _way_of_saving(draw: random.Random, tally: Tally) -> list[object]:
    background = draw.random() < 0.5
    tally.background += background
    return [*(["--async_save"] if background else []), "--keep_checkpoints", draw.choice([0, 2])]


def _continuation(killed: Path) -> list[str]:
    return ["--load_checkpoint", "latest"] if whole_checkpoints(killed) else ["--overwrite"]


def _start_and_kill(warm: Any, start: Sequence[object], killed: Path, draw: random.Random, tally: Tally) -> None:
    before, log = _newest_step(killed), _log_file(killed)
    run: Started = warm.start(RANKS, [*start, *_continuation(killed)])
    kind = draw.choices(["saving", "starting", "anywhere"], [0.34, 0.1, 0.56])[0]
    _wait_for(kind, killed, (before, log), draw)
    if draw.random() < 0.3:
        tally.one_rank_alone += 1
        with suppress(ProcessLookupError):
            os.kill(draw.choice(run.pids), signal.SIGKILL)
    else:
        run.kill()
    finished = run.wait()
    tally.kills[kind] += 1
    tally.while_saving += any(killed.glob(".epoch-*.partial"))
    # A run that was killed before it began its log leaves the lines of the one before, which have been counted.
    logged = [line["step"] for line in _metrics(killed)] if _log_file(killed) != log else []
    lost = max(max(logged, default=0) - _newest_step(killed), 0)
    tally.lost_steps.append(lost)
    if finished.code != -signal.SIGKILL:
        tally.problems.append(f"ended by itself with {finished.code}: {finished.output[-3000:]}")
    if before and kind != "starting" and "resumed " not in finished.output:
        tally.problems.append(f"did not resume: {finished.output[-2000:]}")
    # One checkpoint may be under way in a thread; the one before it is whole by then.
    in_flight = 2 if "--async_save" in start else 1
    if lost > in_flight * SAVE_INTERVAL or _newest_step(killed) < before:
        tally.problems.append(f"{lost} steps lost; the newest checkpoint went from {before} to {_newest_step(killed)}")


def _wait_for(kind: str, killed: Path, before: tuple[int, int], draw: random.Random) -> None:
    """Wait for the moment to kill; `before` is the step of the checkpoint, and the metrics file that was there."""
    if kind == "starting":
        time.sleep(draw.uniform(0, 3))
        return
    deadline = time.monotonic() + 120
    steps = draw.randrange(0, 3 * SAVE_INTERVAL)
    while time.monotonic() < deadline:
        begun = _log_file(killed) != before[1]  # a restart writes it anew, without the lines that are to come again
        if kind == "saving" and begun and any(killed.glob(".epoch-*.partial")):
            break
        if kind == "anywhere" and begun and len(_metrics(killed)) > before[0] + steps:
            break
        time.sleep(0.0005)
    time.sleep(draw.uniform(0, 0.02))


def _log_file(save_dir: Path) -> int:
    path = save_dir / "run" / "metrics.jsonl"
    return path.stat().st_ino if path.is_file() else 0


def _newest_step(save_dir: Path) -> int:
    whole = whole_checkpoints(save_dir)
    return int(whole[-1].name.rpartition("-")[2]) if whole else 0


def _metrics(save_dir: Path) -> list[dict[str, Any]]:
    path = save_dir / "run" / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _weights(model_dir: Path) -> dict[str, bytes]:
    tensors = [tensor for path in sorted(model_dir.glob("*.safetensors")) for tensor in read_header(path)[0]]
    return {tensor.name: map_tensor(tensor).numpy().tobytes() for tensor in tensors}


if __name__ == "__main__":
    cli.run(RandomKills, main)
