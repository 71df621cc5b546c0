"""The same function on many jobs, in worker processes that leave nothing half-done behind."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from colossal_llama2 import cli
from colossal_llama2.errors import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")
_SECONDS_BETWEEN_LINES = 30.0


class Workers:
    """Calls a function on many jobs, here or elsewhere; whatever does it, results come in the order of the jobs."""

    def run_all(self, function: Callable[[Job], Result], jobs: Sequence[Job], what: str) -> list[Result]:
        """Call a function on every job; the first mistake ends it.

        When it ends, however it ends, no worker is still writing: the caller is about to remove the unfinished output.
        """
        return list(_progress(map(function, jobs), len(jobs), what))


class _LocalWorkers(Workers):
    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def run_all(self, function: Callable[[Job], Result], jobs: Sequence[Job], what: str) -> list[Result]:
        futures: list[Future[Result]] = []
        try:
            with _interrupts_held():
                futures += [self._pool.submit(function, job) for job in jobs]
            return list(_progress((future.result() for future in futures), len(jobs), what))
        except BrokenProcessPool:
            raise InputError(
                f"a worker was killed while {what}, by the system if memory ran out",
                remedy="start again, it goes on from what is done; --num_workers 1 takes the least memory",
            ) from None
        finally:
            for future in futures:
                future.cancel()
            wait(futures)


class _RayWorkers(Workers):
    """Tasks of a Ray cluster, a few for each of its processors at a time."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._most = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))

    def run_all(self, function: Callable[[Job], Result], jobs: Sequence[Job], what: str) -> list[Result]:
        # A task that ended with an error is not tried again: it would end the same way.
        task = self._ray.remote(num_cpus=1, max_retries=3, retry_exceptions=False)(_call)
        shared = self._ray.put(function)
        waiting: deque[Any] = deque()
        left = iter(jobs)

        def results() -> Iterator[Result]:
            while True:
                while len(waiting) < self._most and (job := next(left, None)) is not None:
                    waiting.append(task.remote(shared, job))
                if not waiting:
                    return
                yield self._result(waiting.popleft())

        try:
            return list(_progress(results(), len(jobs), what))
        finally:
            if waiting:
                self._ray.wait(list(waiting), num_returns=len(waiting))

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, InputError) else error) from None


def _call(function: Callable[[Job], Result], job: Job) -> Result:
    return function(job)


@contextmanager
def start_workers(num_workers: int, ray_address: str | None = None) -> Iterator[Workers]:
    """Give workers for the length of a block.

    Args:
        num_workers: processes of this machine; 0 takes one a processor, 1 does the work in this process.
        ray_address: a Ray cluster that does the work instead.

    Raises:
        InputError: Ray is not installed, or there is no cluster at that address.
    """
    if ray_address is not None:
        with _ray_cluster(ray_address) as ray:
            yield _RayWorkers(ray)
        return
    count = num_workers or len(os.sched_getaffinity(0))
    if count == 1:
        yield Workers()
        return
    # A forked worker has everything that is loaded here; one that is spawned loads it again, for a second or two. But
    # a lock that another thread holds is never released in a fork. (Arrow's and OpenBLAS's pools take care of forks.)
    method = "fork" if sys.platform == "linux" and threading.active_count() == 1 else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(count, context, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        yield _LocalWorkers(pool)


def _end_with(parent: int) -> None:
    """Let the kernel end this worker when its parent is killed, which would leave it waiting for jobs for ever."""
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before
        os._exit(1)


@contextmanager
def _ray_cluster(address: str) -> Iterator[Any]:
    try:
        import ray
    except ImportError:
        raise InputError(
            "--executor ray needs Ray, which is not installed", remedy="pip install 'colossal-llama2[ray]'"
        ) from None
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"no Ray cluster at --ray_address {address} ({str(error).splitlines()[0]})",
            remedy=(
                "start one with `ray start --head`, or pass --ray_address local; where the cluster asks for a token, "
                "set RAY_AUTH_MODE=token"
            ),
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


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
