"""The command as a process: it starts, says where it is, ends in good order, and stands whatever comes in."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from colossal_llama2.chat.serving.model_names import model_names
from colossal_llama2.chat.serving.serve import bound_socket
from colossal_llama2.chat.serving.settings import (
    KEY_VARIABLE,
    DoorOptions,
    LimitOptions,
    ServeSettings,
    check_settings,
    read_keys,
)
from colossal_llama2.errors import InputError

_TOOL = Path(__file__).parents[3] / "tools" / "serve.py"
_KEY = "the-key"


@contextmanager
def process(*flags: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the command on a free port; give it and the port once it listens."""
    arguments = [sys.executable, str(_TOOL), "--port", "0", *map(str, flags)]
    environment = {**os.environ, KEY_VARIABLE: _KEY, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as running:
        assert running.stdout is not None
        try:
            line = running.stdout.readline()
            found = re.fullmatch(r"serving .* on http://127\.0\.0\.1:(\d+) \(page at /, API at /v1\)\n", line)
            assert found, line
            for _ in range(200):
                with suppress(OSError), socket.create_connection(("127.0.0.1", int(found[1])), timeout=1):
                    break
                time.sleep(0.05)
            yield running, int(found[1])
        finally:
            running.kill()


@pytest.mark.long
def test_a_signal_ends_it_in_good_order(long_model_dir: Path) -> None:
    with process("--model", long_model_dir) as (running, port):
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=_KEY, max_retries=0)
        asked: Any = {"model": "rambler", "prompt": "the quick", "max_tokens": 150, "seed": 1}
        expected = client.completions.create(**asked).choices[0].text
        chunks = client.completions.create(**asked, stream=True)
        text = next(iter(chunks)).choices[0].text
        running.send_signal(signal.SIGTERM)
        text += "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
        assert text == expected
        assert running.wait(20) == 0
        with pytest.raises(openai.APIConnectionError):
            client.models.list()


@pytest.mark.long
def test_it_stands_200_clients_that_do_their_worst(long_model_dir: Path) -> None:
    with process("--model", long_model_dir, "--idle_seconds", 5, "--max_queue", 300) as (running, port):
        # The client as it comes sends again what meets a connection that the server has just closed as idle.
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=_KEY)
        asked: Any = {"model": "rambler", "prompt": "the quick", "max_tokens": 8, "seed": 1}
        expected = client.completions.create(**asked).choices[0].text
        memory = []
        for wave in range(4):
            threads = [threading.Thread(target=_misbehave, args=[port, wave * 1000 + n]) for n in range(200)]
            for thread in threads:
                thread.start()
            answered = 0
            while any(thread.is_alive() for thread in threads):
                assert client.completions.create(**asked).choices[0].text == expected
                answered += 1
            assert answered > 0, "good requests are answered in between"
            assert running.poll() is None
            memory.append(psutil.Process(running.pid).memory_info().rss / 2**20)
            print(f"wave {wave}: {answered} good requests answered, {memory[-1]:.0f} MiB")
        page = _page_when_all_is_quiet(port)
        assert 'reason="cancelled"' in page
        assert not re.search(r'status="(5..|429)"', page), "no good request was refused before it was sent again"
        # The first wave fills pools and caches; what came after it must leave nothing behind.
        assert memory[-1] - memory[0] < 20, memory


def _misbehave(port: int, number: int) -> None:
    """Do one of the worst things, with or without the key."""
    chance = random.Random(number)
    key = f"Authorization: Bearer {_KEY}\r\n" if chance.random() < 0.7 else ""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{key}Content-Type: application/json\r\n"
    asked = json.dumps(
        {"model": "rambler", "prompt": "x", "max_tokens": 1000, "stream": chance.random() < 0.5}
    ).encode()
    length = f"Content-Length: {len(asked)}\r\n\r\n".encode()
    whole = head.encode() + length + asked

    def drip(connection: socket.socket) -> None:
        for character in head[:30]:
            connection.sendall(character.encode())
            time.sleep(0.1)

    def read_a_little(connection: socket.socket) -> None:
        connection.sendall(whole)
        connection.recv(10)

    def stay_a_while(connection: socket.socket) -> None:
        connection.sendall(whole)
        time.sleep(2)

    deeds: list[Callable[[socket.socket], object]] = [
        lambda connection: None,
        lambda connection: connection.sendall(chance.randbytes(5000)),
        lambda connection: connection.sendall(head.encode() + b"Content-Length: 10000000\r\n\r\n" + b"x" * 10_000_000),
        lambda connection: connection.sendall(head.encode() + b"Content-Length: 4\r\n\r\n\xff\xfe\xfd\xfc"),
        lambda connection: connection.sendall(
            head.encode() + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n" + b"x" * 100_000
        ),
        lambda connection: connection.sendall(whole),
        lambda connection: connection.sendall(whole[: -len(asked) + 5]),
        lambda connection: connection.sendall(b"GET / HTTP/1.1\r\n" + b"X-Header: y\r\n" * 20_000),
        lambda connection: connection.sendall((head + "Content-Length: 0\r\n\r\n").encode() * 50),
        drip,
        read_a_little,
        stay_a_while,
    ]
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        deeds[number % len(deeds)](connection)
        if chance.random() < 0.3:  # a hang-up that sends a reset instead of an end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        if chance.random() < 0.3:
            connection.recv(1000)


def _page_when_all_is_quiet(port: int) -> str:
    """Wait until nothing runs, as it must once everybody has gone away, and return the figures."""
    for _ in range(100):
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {_KEY}"})
        page = connection.getresponse().read().decode()
        connection.close()
        if 'running{model="rambler"} 0.0' in page and 'queue_length{model="rambler"} 0.0' in page:
            return page
        time.sleep(0.1)
    raise AssertionError(page)


def test_names_are_as_short_as_tells_them_apart(tmp_path: Path) -> None:
    assert model_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    folders = [tmp_path / name for name in ("x/modeling", "y/modeling", "z/y/modeling", "base")]
    assert model_names(folders) == ["x/modeling", f"{tmp_path.name}/y/modeling", "z/y/modeling", "base"]
    with pytest.raises(InputError, match="named twice"):
        model_names([tmp_path / "a", tmp_path / "b" / ".." / "a"])


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        (ServeSettings(()), "--model"),
        (ServeSettings((Path("m"),), engine="vllm"), "vllm serve m"),
        (ServeSettings((Path("m"),), temperature=3), "--temperature"),
        (ServeSettings((Path("m"),), door=DoorOptions(port=70000)), "--port"),
        (ServeSettings((Path("m"),), door=DoorOptions(allow_origin=("*",))), "--allow_origin"),
        (ServeSettings((Path("m"),), limits=LimitOptions(max_running=0)), "--max_running"),
        (ServeSettings((Path("m"),), limits=LimitOptions(max_seconds=0)), "--max_seconds"),
        (ServeSettings((Path("m"),), limits=LimitOptions(max_queue=-1)), "--max_queue"),
        (ServeSettings((Path("m"),), limits=LimitOptions(max_prompt_tokens=0)), "--max_prompt_tokens"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: ServeSettings, flag: str) -> None:
    with pytest.raises(InputError, match=re.escape(flag)):
        check_settings(settings)


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    path = tmp_path / "keys"
    path.write_text("one\n\n two \n")
    assert read_keys(DoorOptions()) == ()
    assert read_keys(DoorOptions(api_key_file=path)) == (b"one", b"two")
    monkeypatch.setenv(KEY_VARIABLE, "three")
    assert read_keys(DoorOptions()) == (b"three",)
    assert read_keys(DoorOptions(api_key_file=path)) == (b"one", b"two")
    for wrong in ("", "two words", "kéy"):
        monkeypatch.setenv(KEY_VARIABLE, wrong)
        with pytest.raises(InputError, match="holds no API key"):
            read_keys(DoorOptions())
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no API key"):
        read_keys(DoorOptions(api_key_file=path))


def test_nobody_beyond_this_machine_comes_in_without_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "some.host"):
        with pytest.raises(InputError, match="without a key"):
            read_keys(DoorOptions(host=host))
    assert read_keys(DoorOptions(host="0.0.0.0", allow_no_key=True)) == ()
    assert "without an API key" in capsys.readouterr().err
    for host in ("localhost", "127.0.0.2", "::1"):
        assert read_keys(DoorOptions(host=host)) == ()


def test_a_port_that_is_taken_is_told_at_once() -> None:
    with bound_socket("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(InputError, match="cannot listen"), bound_socket("127.0.0.1", taken.getsockname()[1]):
            pass
