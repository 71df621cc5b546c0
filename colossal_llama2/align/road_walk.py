"""Going along a road: a step after the other, each in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final

from colossal_llama2 import cli
from colossal_llama2.align.road_records import Found, discard, note
from colossal_llama2.align.road_steps import Road, Step
from colossal_llama2.engine.nodes import launch
from colossal_llama2.engine.nodes.remote import ROOT
from colossal_llama2.engine.nodes.signals import StopSignals

Runner = Callable[[Step, Sequence[str]], int]
"""Does a step, with flags that resume it or let it discard what is left of a broken one; returns its exit code."""
_GRACE_OF_TOOLS: Final = 10.0  # seconds
_POLL_SECONDS: Final = 0.1
_FLAGS: Final = {"resume": ("--load_checkpoint", "latest"), "again": ("--overwrite",)}


class Processes:
    """Starts steps as a user would, and passes on the signals that ask for an end."""

    def __init__(self) -> None:
        self.stop = StopSignals(0.0)

    def __call__(self, step: Step, flags: Sequence[str]) -> int:
        """Run a step; return its exit code, 128 + N once signal N has been asked for."""
        if self.stop.number is not None:
            return 128 + self.stop.number
        script = [str(ROOT / step.kind.script), *step.arguments, *flags]
        if step.launch is None:
            return self._run_alone(script)
        self.stop.grace = step.launch.stop_seconds
        return launch.main(step.launch, script, self.stop)

    def _run_alone(self, script: Sequence[str]) -> int:
        process = subprocess.Popen([sys.executable, *script], start_new_session=True)
        while (code := process.poll()) is None:
            if self.stop.number is not None:
                _end(process, self.stop.number)
                return 128 + self.stop.number
            time.sleep(_POLL_SECONDS)
        return code if code >= 0 else 128 - code


def walk(road: Road, found: Mapping[str, Found], redo: Collection[str], run: Runner) -> int:
    """Do what is left to do, in order; return 0, or the exit code of the step that did not end well."""
    for name in redo:
        cli.say(f"{name}: discarded, to be done again")
    for step in road.steps:
        if step.name in redo:
            discard(road, step)
    for number, step in enumerate(road.steps, 1):
        title = f"step {number} of {len(road.steps)}, {step.name} ({step.kind.name})"
        state = found[step.name].state
        if found[step.name].is_done:
            cli.say(f"{title}: done already" + (", its output removed since" if state == "gone" else ""))
            continue
        cli.say(f"{title}: {_begins(step, state)}")
        started = time.monotonic()
        note(road, step, "begun")
        code = run(step, _FLAGS.get(state, ()))
        if code:
            cli.say(f"the road ends at step {step.name} with exit code {code}; {_way_on(code)}")
            return code
        if not step.whole.is_file():
            raise RuntimeError(f"step {step.name} ended well, and {step.whole} is not there")
        note(road, step, "done", time.monotonic() - started)
    cli.say(f"the road is done: {road.steps[-1].made}")
    return 0


def _begins(step: Step, state: str) -> str:
    where = f"from {step.weights}" if step.weights else f"to {step.made}"
    if state == "resume":
        return f"was broken off, resumed from its latest checkpoint; {where}"
    return f"was broken off before anything of it could be kept, begun anew; {where}" if state == "again" else where


def _way_on(code: int) -> str:
    after = "the same command goes on from there"
    return after if code >= 128 else f"once that is mended, {after}"


def _end(process: subprocess.Popen[bytes], number: int) -> None:
    """Ask a tool and its workers to end, and see to it."""
    for which, seconds in ((number, _GRACE_OF_TOOLS), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, which)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
            return
