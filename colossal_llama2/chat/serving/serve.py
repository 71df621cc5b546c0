"""The command `tools/serve.py`: load models, and answer requests until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from colossal_llama2 import cli
from colossal_llama2.chat.serving.model_names import model_names
from colossal_llama2.chat.serving.settings import ServeSettings, check_settings, read_keys
from colossal_llama2.errors import InputError

try:
    from colossal_llama2.chat.serving.gate import ACCESS_LOG
    from colossal_llama2.chat.serving.metrics import Metrics
    from colossal_llama2.chat.serving.server import Server
except ModuleNotFoundError as missing:
    if str(missing.name).startswith("colossal_llama2"):
        raise
    what = f"serving needs the package {missing.name}, which is not installed"
    raise InputError(what, remedy="pip install 'colossal-llama2[serve]'") from None
from colossal_llama2.chat.serving.batch_cache import check_cache
from colossal_llama2.chat.serving.model_service import ModelService, ServiceOptions
from colossal_llama2.chat.serving.word_filter import read_words
from colossal_llama2.chat.serving.worker import Worker
from colossal_llama2.model.inference import load_for_inference

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def main(settings: ServeSettings) -> None:
    """Check everything that can be checked at once, load the models, and serve until a signal."""
    check_settings(settings)
    keys = read_keys(settings.door)
    words = None if settings.word_filter is None else read_words(settings.word_filter)
    names = model_names(settings.model)
    metrics = Metrics()
    options = ServiceOptions(settings.limits, words, settings.temperature, settings.top_p)
    with bound_socket(settings.door.host, settings.door.port) as listener:
        services = load_services(settings.model, names, settings.device, options, metrics)
        _log_to_stderr()
        server = Server(services, settings.door, settings.limits, keys, metrics)

        # A command ends when a pipe it writes to breaks; a server must not, each time a client hangs up.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

        def ready() -> None:
            for number in _SIGNALS:
                asyncio.get_running_loop().add_signal_handler(number, server.end)
            what = "page at /, API at /v1" if server.has_page else "API at /v1"
            cli.say(f"serving {', '.join(names)} on {_address(listener)} ({what})")

        asyncio.run(server.run(listener, ready))


def load_services(
    folders: Sequence[Path], names: Sequence[str], device: str, options: ServiceOptions, metrics: Metrics
) -> list[ModelService]:
    """Load the models and start their workers.

    Raises:
        InputError: a model cannot be loaded, or not be served.
    """
    models = [load_for_inference(folder, device) for folder in folders]
    services = []
    for folder, name, loaded in zip(folders, names, models, strict=True):
        check_cache(loaded.model, folder)
        _ = loaded.document_start  # a tokenizer without one complains now, not at the first request
        services.append(ModelService(name, loaded, Worker(name, loaded, options.limits, metrics), options))
    return services


@contextlib.contextmanager
def bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    """Take a port before the models are loaded; nobody can connect before it listens, so nobody waits in vain.

    Raises:
        InputError: it is taken, or no such address is here.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        complaint = f"cannot listen on {host}:{port} ({error.strerror})"
        raise InputError(complaint, remedy="give another --port or --host") from None
    with listener:
        yield listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    ACCESS_LOG.addHandler(handler)
    ACCESS_LOG.setLevel(logging.INFO)
    ACCESS_LOG.propagate = False
