"""A preparation that is killed fifty times, at any moment, and ends with the bytes of one that was left alone.

    python benchmarks/prepare_kills.py --tokenizer_dir DIR [--corpus_dir DIR] [--kills 50] [--ray none|local|head]

The command and all it started are killed together (SIGKILL), and the same command is started again until it ends; then
everything begins anew with an empty cache, until there were enough kills. A third of the kills wait until shards
are being encoded, a third until buckets are being written, some until the first of the two outputs has its name, the
others come anywhere. Compared is every output file but ``settings.yaml``, which names places. The same bytes must come
from one worker, from two, and from a Ray cluster, which is started here and stopped again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from benchmarks.preparations import (
    FIRST,
    SECOND,
    Preparation,
    differences,
    make_corpus,
    output_hashes,
    ray_cluster,
    run_undisturbed,
)
from colossal_llama2 import cli
from colossal_llama2.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class PrepareKills:
    """Kill a preparation again and again, and compare it with one that was left alone."""

    tokenizer_dir: Path
    """Tokenizer."""
    corpus_dir: Path | None = None
    """Folder of jsonl; unless given, text is made here."""
    megabytes: float = 40
    """Size of the text that is made; a shard of the preparation has 4 MiB."""
    kills: int = 50
    """How often."""
    ray: Literal["none", "local", "head"] = "local"
    """Compare with Ray: a cluster that the command starts itself, one started by `ray start --head`, or not at all."""
    seed: int = 0
    """Decides when."""
    output: Path = ROOT / "benchmarks" / "results" / "prepare_kills.json"
    """Where the result is written."""


@dataclass
class Tally:
    """What the kills hit, and what they left.

    Attributes:
        kills: by what was waited for.
        finished: preparations that ended after kills, each compared.
        ended_before_the_kill: runs that were done before the moment came.
        shards_found_after_kills: shards that need not be done again, all kills together.
        most_kills_of_one_preparation: how often the unluckiest was killed.
        left_in_the_cache: names of what is no encoded shard and stayed in the cache after a preparation ended.
        left_beside_the_outputs: names of what stayed there.
        problems: broken promises.
    """

    kills: dict[str, int] = field(
        default_factory=lambda: {"encoding": 0, "writing": 0, "between the outputs": 0, "anywhere": 0}
    )
    finished: int = 0
    ended_before_the_kill: int = 0
    shards_found_after_kills: int = 0
    most_kills_of_one_preparation: int = 0
    left_in_the_cache: dict[str, int] = field(default_factory=dict)
    left_beside_the_outputs: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def main(settings: PrepareKills) -> int:
    """Do it, write the result, and return 1 when a promise is broken."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        corpus = settings.corpus_dir or make_corpus(work / "in", settings.megabytes)
        alone = Preparation(corpus, settings.tokenizer_dir, work / "alone")
        seconds = run_undisturbed(alone)
        expected = output_hashes(alone.folder)
        if not expected:
            raise InputError("gave no output", path=corpus)
        problems = _compare_executors(settings, corpus, work, expected)
        tally = kill_again_and_again(settings, corpus, work, (expected, seconds))
    tally.problems += problems
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "files compared": len(expected),
        "compared with": ["1 worker", *([] if settings.ray == "none" else [f"ray ({settings.ray})"])],
        "seconds undisturbed": round(seconds, 2),
        "seconds": round(time.perf_counter() - begun),
        **asdict(tally),
    }
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    cli.say(f"{sum(tally.kills.values())} kills ({tally.kills}), {tally.finished} preparations ended and compared")
    cli.say(f"left over: {tally.left_in_the_cache} in caches, {tally.left_beside_the_outputs} beside outputs")
    for problem in tally.problems:
        print(problem, file=sys.stderr)
    return 1 if tally.problems else 0


def kill_again_and_again(
    settings: PrepareKills, corpus: Path, work: Path, undisturbed: tuple[dict[str, str], float]
) -> Tally:
    """Prepare and kill until there were enough kills and the last preparation has ended.

    Args:
        settings: how often, and with which tokenizer.
        corpus: what is prepared.
        work: folder for the outputs.
        undisturbed: hashes of a preparation's files and how long it takes, in seconds.
    """
    expected, seconds = undisturbed
    draw, tally = random.Random(settings.seed), Tally()
    number = 0
    while sum(tally.kills.values()) < settings.kills:
        killed = Preparation(corpus, settings.tokenizer_dir, work / f"killed-{number}")
        times = _prepare_under_fire(killed, settings.kills, seconds, draw, tally)
        tally.most_kills_of_one_preparation = max(tally.most_kills_of_one_preparation, times)
        tally.problems += [f"preparation {number}, {times} kills: {what}" for what in differences(killed, expected)]
        _note_left_over(killed.folder, tally)
        shutil.rmtree(killed.folder)
        tally.finished += 1
        number += 1
        cli.say(f"{sum(tally.kills.values())} kills, {tally.finished} ended, {len(tally.problems)} problems")
    return tally


def _prepare_under_fire(killed: Preparation, most: int, seconds: float, draw: random.Random, tally: Tally) -> int:
    """Start and kill until a run ends by itself; return the kills."""
    times = 0
    while True:
        run = killed.start()
        kind = draw.choices(list(tally.kills), [0.33, 0.33, 0.1, 0.24])[0] if sum(tally.kills.values()) < most else ""
        ended = _wait_for(kind, killed, run, seconds, draw)
        if not ended:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
        code = run.wait()
        if not ended and code == -signal.SIGKILL:
            tally.kills[kind] += 1
            times += 1
            tally.shards_found_after_kills += len(list((killed.folder / "cache").glob("tokens-*")))
            if all(killed.outputs_there()):
                return times  # it was on its way out
            continue
        if code == 0:
            tally.ended_before_the_kill += bool(kind)
            return times
        there = killed.outputs_there()
        tally.problems.append(f"started again after {times} kills, outputs there {there}: {code}: {killed.said()}")
        if any(there):  # go on as a person would, so that the bytes can be compared
            subprocess.run(killed.command("--overwrite"), check=True, stdout=subprocess.DEVNULL)
        return times


def _wait_for(
    kind: str, killed: Preparation, run: subprocess.Popen[bytes], seconds: float, draw: random.Random
) -> bool:
    """Wait for the moment to kill; return whether the run ended before."""
    begun = time.monotonic()
    moment = draw.uniform(0, 1.1 * seconds)
    signs = {
        "encoding": lambda: any((killed.folder / "cache").glob(".tokens-*.partial-*")),
        "writing": lambda: any(killed.folder.glob(f".{FIRST}.partial-*")),
        "between the outputs": (killed.folder / FIRST).exists,
        "anywhere": lambda: time.monotonic() - begun >= moment,
        "": lambda: False,
    }
    while run.poll() is None:
        if signs[kind]():
            # From at once to a third of a whole run later: most of what can go wrong is over in milliseconds.
            after = 0.0 if kind in ("between the outputs", "anywhere") else seconds * 10 ** draw.uniform(-4, -0.5)
            with suppress(subprocess.TimeoutExpired):
                run.wait(after)
            break
        time.sleep(0.0003)
    return run.poll() is not None


def _compare_executors(settings: PrepareKills, corpus: Path, work: Path, expected: dict[str, str]) -> list[str]:
    """Prepare with one worker and on Ray; return what differs."""
    problems = []
    with ray_cluster(settings.ray, work / "ray-files") as address:
        ways: dict[str, Sequence[str]] = {"1 worker": ("--num_workers", "1"), "2 workers": ("--num_workers", "2")}
        if address is not None:
            ways["ray"] = ("--executor", "ray", "--ray_address", address)
        for name, flags in ways.items():
            preparation = Preparation(corpus, settings.tokenizer_dir, work / name.replace(" ", "-"))
            try:
                seconds = run_undisturbed(preparation, *flags)
            except RuntimeError as error:
                problems.append(f"{name}: {error}")
                continue
            cli.say(f"{name}: {seconds:.1f} s")
            problems += [f"{name}: {what}" for what in differences(preparation, expected)]
            shutil.rmtree(preparation.folder)
    return problems


def _note_left_over(folder: Path, tally: Tally) -> None:
    """Count what is neither output nor encoded shard, by the first part of its name."""
    for path in (folder / "cache").iterdir():
        if not path.name.startswith("tokens-"):
            kind = path.name.partition("-")[0]
            tally.left_in_the_cache[kind] = tally.left_in_the_cache.get(kind, 0) + 1
    for path in folder.iterdir():
        if path.name not in ("cache", "said.txt", FIRST, SECOND):
            kind = path.name.rpartition("-")[0].rpartition("-")[0]
            tally.left_beside_the_outputs[kind] = tally.left_beside_the_outputs.get(kind, 0) + 1
            tally.problems.append(f"{path.name} is left beside the outputs")


if __name__ == "__main__":
    cli.run(PrepareKills, main)
