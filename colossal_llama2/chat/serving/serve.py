"""The command `tools/serve.py`: load models, answer requests, end in good order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence

from colossal_llama2 import cli
from colossal_llama2.chat.serving.model_names import model_names
from colossal_llama2.chat.serving.settings import ServeSettings, check_settings, is_loopback, read_keys
from colossal_llama2.errors import InputError

try:
    import uvicorn

    from colossal_llama2.chat.serving.app import Api, build_app
    from colossal_llama2.chat.serving.connections import BoundedProtocol, ConnectionBounds
    from colossal_llama2.chat.serving.gate import ACCESS_LOG, Gate, Guests, local_names
    from colossal_llama2.chat.serving.metrics import Metrics
except ModuleNotFoundError as missing:
    if missing.name not in ("fastapi", "starlette", "uvicorn", "h11", "prometheus_client", "pydantic"):
        raise
    what = f"serving needs the package {missing.name}, which is not installed"
    raise InputError(what, remedy="pip install 'colossal-llama2[serve]'") from None
from colossal_llama2.chat.serving.batch_cache import check_cache
from colossal_llama2.chat.serving.model_service import ModelService, ServiceOptions
from colossal_llama2.chat.serving.page_files import read_page
from colossal_llama2.chat.serving.word_filter import WordFilter, read_words
from colossal_llama2.chat.serving.worker import Worker
from colossal_llama2.model.inference import load_for_inference

_SECONDS_TO_CLOSE = 5


def main(settings: ServeSettings) -> None:
    """Check everything that can be checked at once, load the models, and serve until a signal."""
    check_settings(settings)
    keys = read_keys(settings.door)
    words = None if settings.word_filter is None else read_words(settings.word_filter)
    names = model_names(settings.model)
    metrics = Metrics()
    with _bound_socket(settings.door.host, settings.door.port) as listener:
        services = load_services(settings, names, words, metrics)
        _log_to_stderr()
        asyncio.run(_serve(settings, services, keys, metrics, listener))


def load_services(
    settings: ServeSettings, names: Sequence[str], words: WordFilter | None, metrics: Metrics
) -> list[ModelService]:
    """Load the models and start their workers.

    Raises:
        InputError: a model cannot be loaded, or not be served.
    """
    loaded = [load_for_inference(folder, settings.device) for folder in settings.model]
    options = ServiceOptions(settings.limits, words, settings.temperature, settings.top_p)
    services = []
    for folder, name, model in zip(settings.model, names, loaded, strict=True):
        check_cache(model.model, folder)
        _ = model.document_start  # complains now, not at the first request
        worker = Worker(name, model, settings.limits, metrics)
        services.append(ModelService(name, model, worker, options))
    return services


async def _serve(
    settings: ServeSettings,
    services: Sequence[ModelService],
    keys: tuple[bytes, ...],
    metrics: Metrics,
    listener: socket.socket,
) -> None:
    door, limits, page = settings.door, settings.limits, read_page()
    hosts = local_names(door.host, door.allow_host) if is_loopback(door.host) else ()
    guests = Guests(keys, hosts, door.allow_origin, frozenset(["/health", *page]))
    gate = Gate(build_app(Api(services, limits, metrics), page), guests, metrics)
    bounds = ConnectionBounds(limits.max_connections, limits.idle_seconds)
    protocol = functools.partial(BoundedProtocol, bounds, metrics)
    server = _Server(
        uvicorn.Config(
            gate,
            http=protocol,  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=max(1, int(limits.idle_seconds)),
            timeout_graceful_shutdown=_SECONDS_TO_CLOSE,
        )
    )
    ending = _Ending(server, gate, services, limits.drain_seconds)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.begin)
    shown, port = listener.getsockname()[:2]
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
    what = "page at /, API at /v1" if page else "API at /v1"
    cli.say(f"serving {', '.join(service.name for service in services)} on {address} ({what})")
    await server.serve([listener])
    await ending.wait()


class _Server(uvicorn.Server):
    """uvicorn's server, whose signals are handled here: it would stop listening at once, and not exit with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Ending:
    """Ends the server in good order: what runs may finish, what comes is turned away."""

    def __init__(self, server: uvicorn.Server, gate: Gate, services: Sequence[ModelService], seconds: float) -> None:
        self._server, self._gate, self._services, self._seconds = server, gate, services, seconds
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin to end; called a second time, cut short what still runs."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._seconds = 0

    async def wait(self) -> None:
        """Wait until it has ended."""
        if self._task is not None:
            await self._task

    async def _drain(self) -> None:
        self._gate.draining = True
        began = time.monotonic()
        if self._gate.active:
            cli.say(f"ending: {self._gate.active} requests get up to {self._seconds:g} seconds to finish")
        while self._gate.active and time.monotonic() - began < self._seconds:
            await asyncio.sleep(0.05)
        if self._gate.active:
            cli.warn(f"{self._gate.active} requests had not finished and are cut off")
        for service in self._services:
            await asyncio.to_thread(service.worker.stop)
        self._server.should_exit = True


@contextlib.contextmanager
def _bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    """Take the port before the models are loaded; it listens only after, so that nobody waits in vain.

    Raises:
        InputError: it is taken, or no such address is here.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        what = f"cannot listen on {host}:{port} ({error.strerror})"
        raise InputError(what, remedy="give another --port or --host") from None
    with listener:
        yield listener


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    ACCESS_LOG.addHandler(handler)
    ACCESS_LOG.setLevel(logging.INFO)
    ACCESS_LOG.propagate = False
