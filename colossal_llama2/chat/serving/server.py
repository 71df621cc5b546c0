"""Models behind a port: what connects workers, application, gate and uvicorn, and ends them in good order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from colossal_llama2 import cli
from colossal_llama2.chat.serving.app import Api, build_app
from colossal_llama2.chat.serving.connections import BoundedProtocol, ConnectionBounds
from colossal_llama2.chat.serving.gate import Gate, Guests, local_names
from colossal_llama2.chat.serving.metrics import Metrics
from colossal_llama2.chat.serving.model_service import ModelService
from colossal_llama2.chat.serving.page_files import read_page
from colossal_llama2.chat.serving.settings import DoorOptions, LimitOptions, is_loopback

_SECONDS_TO_CLOSE = 5


class Server:
    """Answers requests until it is told to end.

    Args:
        services: the models.
        door: where it listens, and whom it answers.
        limits: of requests and connections.
        keys: API keys that are let in; none where none is asked for.
        metrics: where it counts.
    """

    def __init__(
        self,
        services: Sequence[ModelService],
        door: DoorOptions,
        limits: LimitOptions,
        keys: tuple[bytes, ...],
        metrics: Metrics,
    ) -> None:
        page = read_page()
        hosts = local_names(door.host, door.allow_host) if is_loopback(door.host) else ()
        guests = Guests(keys, hosts, door.allow_origin, frozenset(["/health", *page]))
        api = Api(services, limits, metrics)
        self.has_page = bool(page)
        self._services, self._seconds = services, limits.drain_seconds
        self._gate = Gate(build_app(api, page), guests, metrics)
        api.is_draining = lambda: self._gate.draining
        bounds = ConnectionBounds(limits.max_connections, limits.idle_seconds)
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                self._gate,
                http=functools.partial(BoundedProtocol, bounds, metrics),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_keep_alive=max(1, int(limits.idle_seconds)),
                timeout_graceful_shutdown=_SECONDS_TO_CLOSE,
            )
        )
        self._ending: asyncio.Task[None] | None = None

    async def run(self, listener: socket.socket, ready: Callable[[], object]) -> None:
        """Serve on a bound socket; `ready` is called just before it listens."""
        ready()
        await self._uvicorn.serve([listener])
        if self._ending is not None:
            await self._ending

    def end(self) -> None:
        """Begin to end: what runs may finish, what comes is turned away. Called again, cut short what still runs."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._seconds = 0

    async def _drain(self) -> None:
        gate, began = self._gate, time.monotonic()
        gate.draining = True
        if gate.active:
            cli.say(f"ending: {gate.active} requests get up to {self._seconds:g} seconds to finish")
        while gate.active and time.monotonic() - began < self._seconds:
            await asyncio.sleep(0.05)
        if gate.active:
            cli.warn(f"{gate.active} requests had not finished and are cut off")
        for service in self._services:
            await asyncio.to_thread(service.worker.stop)
        self._uvicorn.should_exit = True


class _Uvicorn(uvicorn.Server):
    """uvicorn's server without its signals: it would stop listening at once, and the process would not exit with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
