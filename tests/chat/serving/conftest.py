"""A server on a free port of the loopback: in this process, for the tests that only talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="pip install -r requirements-dev.txt brings it")
pytest.importorskip("prometheus_client", reason="pip install -r requirements-dev.txt brings it")

from prometheus_client.parser import text_string_to_metric_families

from colossal_llama2.chat.serving.metrics import Metrics
from colossal_llama2.chat.serving.model_names import model_names
from colossal_llama2.chat.serving.model_service import ServiceOptions
from colossal_llama2.chat.serving.serve import bound_socket, load_services
from colossal_llama2.chat.serving.server import Server
from colossal_llama2.chat.serving.settings import DoorOptions, LimitOptions
from colossal_llama2.chat.serving.word_filter import WordFilter

_CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@dataclass
class Served:
    """A server that runs.

    Attributes:
        port: where.
        metrics: what it counts.
        end: begins to end it, as a signal does.
        thread: where it runs.
    """

    port: int
    metrics: Metrics
    end: Callable[[], object]
    thread: threading.Thread

    @property
    def base_url(self) -> str:
        """What clients are given."""
        return f"http://127.0.0.1:{self.port}/v1"

    def figure(self, name: str, **labels: str) -> float:
        """Return a figure, summed over the labels that are not named."""
        return figure_of(self.metrics.page().decode(), name, labels)


def figure_of(page: str, name: str, labels: Mapping[str, str]) -> float:
    """Return a figure of a /metrics page."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == f"colossal_llama2_{name}" and labels.items() <= sample.labels.items()
    )


@pytest.fixture(scope="session")
def long_model_dir(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_dir: Path) -> Path:
    """Give a model folder: random Llama with 2,048 positions and a chat template; its texts hardly ever end."""
    import json
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("long") / "rambler"
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=640,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copyfile(llama_tokenizer_dir / "tokenizer.model", folder / "tokenizer.model")
    settings = json.loads((llama_tokenizer_dir / "tokenizer_config.json").read_text())
    settings["chat_template"] = _CHAT_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def serve(long_model_dir: Path) -> Callable[..., AbstractContextManager[Served]]:
    """Give a function that runs a server: `with serve(keys=..., words=..., max_queue=...) as served`."""

    @contextlib.contextmanager
    def run(
        keys: tuple[bytes, ...] = (),
        words: WordFilter | None = None,
        allow_origin: tuple[str, ...] = (),
        models: Sequence[Path] = (long_model_dir,),
        **limits: Any,
    ) -> Iterator[Served]:
        bounds, metrics = LimitOptions(**limits), Metrics()
        services = load_services(models, model_names(models), "cpu", ServiceOptions(bounds, words), metrics)
        server = Server(services, DoorOptions(allow_origin=allow_origin), bounds, keys, metrics)
        ready, loops = threading.Event(), []

        async def serving() -> None:
            loops.append(asyncio.get_running_loop())
            await server.run(listener, ready.set)

        with bound_socket("127.0.0.1", 0) as listener:
            thread = threading.Thread(target=asyncio.run, args=[serving()])
            thread.start()
            assert ready.wait(10)
            served = Served(
                listener.getsockname()[1], metrics, lambda: loops[0].call_soon_threadsafe(server.end), thread
            )
            _wait_until_it_listens(served.port)
            try:
                yield served
            finally:
                for _ in range(2):  # the second time cuts short what still runs
                    with contextlib.suppress(RuntimeError):  # it may have ended already
                        served.end()
                thread.join(20)
                assert not thread.is_alive()

    return run


@pytest.fixture(scope="session")
def served(serve: Callable[..., AbstractContextManager[Served]]) -> Iterator[Served]:
    """Give a server without a key and with the usual limits, the same for all tests that leave it as it is."""
    with serve(max_prompt_tokens=1000, max_output_tokens=1500, max_running=4, max_body_bytes=100_000) as one:
        yield one


def _wait_until_it_listens(port: int) -> None:
    import socket
    import time

    for _ in range(3000):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.01)
    raise AssertionError("the server does not listen")
