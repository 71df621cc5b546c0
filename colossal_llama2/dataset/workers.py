"""The same function on many jobs, in worker processes that leave nothing half-done behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from colossal_llama2 import cli

Job = TypeVar("Job")
Result = TypeVar("Result")
_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def worker_pool(num_workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Give worker processes to `run_all`, or None where the work is to be done in this one.

    Args:
        num_workers: how many; 0 takes one a processor.
    """
    count = num_workers or len(os.sched_getaffinity(0))
    if count == 1:
        yield None
        return
    # spawn: the tokenizer's threads do not survive a fork
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        yield pool


def run_all(
    pool: ProcessPoolExecutor | None, function: Callable[[Job], Result], jobs: Sequence[Job], what: str
) -> list[Result]:
    """Call a function on every job; results come in order, and the first mistake ends it.

    When it ends, however it ends, no worker is still writing: the caller is about to remove the unfinished output.
    """
    if pool is None:
        return list(_progress(map(function, jobs), len(jobs), what))
    futures: list[Future[Result]] = []
    try:
        with _interrupts_held():
            futures += [pool.submit(function, job) for job in jobs]
        return list(_progress((future.result() for future in futures), len(jobs), what))
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C waiting; processes started meanwhile never see it, so that the command ends in one place."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _progress(results: Iterable[Result], total: int, what: str) -> Iterator[Result]:
    """Pass results on; a bar on a terminal, elsewhere a line every half minute."""
    with tqdm(desc=what, total=total, disable=not sys.stderr.isatty()) as bar:
        said = time.monotonic()
        for done, result in enumerate(results, 1):
            yield result
            bar.update()
            if bar.disable and time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                cli.say(f"{what}: {done} of {total}")
