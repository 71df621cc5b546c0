"""Headless Chromium before the page, and a chat server of a few lines behind it that answers what a test tells it."""

from __future__ import annotations

import json
import mimetypes
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Final

import pytest

playwright_api = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-dev.txt brings playwright")

CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FLAGS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
NEED_VARIABLE: Final = "COLOSSAL_LLAMA2_NEED_CHROMIUM"


@dataclass
class Answer:
    """What the server answers one request with.

    Attributes:
        parts: of the text, one event each.
        status: of the response; not 200 sends `message` in an error object.
        headers: beside those the server always sends.
        finish: reason in the last event; none leaves it and the `[DONE]` out, as if the connection had gone.
        gate: waited for before the part of index `gate_at`.
        pause: seconds between two parts.
        event: data sent in the middle of the stream instead of the end.
    """

    parts: Sequence[str] = ()
    status: int = 200
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    finish: str | None = "stop"
    gate: threading.Event | None = None
    gate_at: int = 1
    pause: float = 0.0
    event: str | None = None


@dataclass
class FakeServer:
    """The server as a test sees it.

    Attributes:
        url: of the page.
        models: names that /v1/models lists.
        key: that it asks for, if any.
        answers: taken one after the other; without one it repeats the question.
        requests: bodies of the chat requests, in order.
        hung_up: set once a client has gone away in the middle of an answer.
    """

    url: str = ""
    models: list[str] = field(default_factory=lambda: ["adapted-7b"])
    key: str = ""
    answers: list[Answer] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)

    def next_answer(self, body: dict[str, Any]) -> Answer:
        """Note a request and say how it is answered."""
        self.requests.append(body)
        if self.answers:
            return self.answers.pop(0)
        return Answer([f"{body['model']} heard: ", body["messages"][-1]["content"]])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeServer

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            if self._let_in():
                data = [{"id": name, "object": "model"} for name in self.fake.models]
                self._send(200, json.dumps({"object": "list", "data": data}).encode(), "application/json")
            return
        name = self.path.split("?")[0].removeprefix("/") or "index.html"
        file = resources.files("colossal_llama2.chat") / "page" / name
        if "/" in name or not file.is_file():
            self._send(404, b"not found", "text/plain")
        else:
            self._send(200, file.read_bytes(), mimetypes.guess_type(name)[0] or "application/octet-stream")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._let_in():
            return
        answer = self.fake.next_answer(body)
        if answer.status != 200:
            self._send_error(answer.status, answer.message, answer.headers)
            return
        try:
            self._stream(answer)
        except OSError:
            self.fake.hung_up.set()

    def _stream(self, answer: Answer) -> None:
        self.close_connection = True
        self.send_response(200)
        for name, value in {"Content-Type": "text/event-stream", "Connection": "close", **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for index, part in enumerate(answer.parts):
            if answer.gate is not None and index == answer.gate_at:
                self._wait(answer.gate)
            self._event({"choices": [{"index": 0, "delta": {"content": part}, "finish_reason": None}]})
            time.sleep(answer.pause)
        if answer.event is not None:
            self.wfile.write(f"data: {answer.event}\n\n".encode())
        elif answer.finish:
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": answer.finish}]})
            self._event({"choices": [], "usage": {"completion_tokens": len(answer.parts)}})
            self.wfile.write(b"data: [DONE]\n\n")

    def _wait(self, gate: threading.Event) -> None:
        """Wait for the test; comments in between let a client that has gone be noticed."""
        for _ in range(500):
            if gate.wait(0.02):
                return
            self.wfile.write(b": waiting\n\n")
        raise AssertionError("no test opened the gate within ten seconds")

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def _let_in(self) -> bool:
        if self.fake.key and self.headers.get("Authorization") != f"Bearer {self.fake.key}":
            self._send_error(401, "Wrong API key.", {"WWW-Authenticate": "Bearer"})
            return False
        return True

    def _send_error(self, status: int, message: str, headers: dict[str, str]) -> None:
        error = {"message": message, "type": "error", "param": None, "code": None}
        self._send(status, json.dumps({"error": error}).encode(), "application/json", headers)

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        own = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in {**own, "Content-Security-Policy": CONTENT_POLICY, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    handler = type("Handler", (_Handler,), {"fake": fake})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    listening.daemon_threads = True
    fake.url = f"http://127.0.0.1:{listening.server_address[1]}/"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield fake
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of the page."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        reason = "no Chromium found: apt-get install chromium"
        if os.environ.get(NEED_VARIABLE):
            pytest.fail(f"{reason} ({NEED_VARIABLE} is set)")
        pytest.skip(reason)
    with playwright_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=list(_FLAGS))
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any, server: FakeServer) -> Iterator[Callable[..., Any]]:
    """Open the page as a new person; fails the test for any error in the browser's console."""
    contexts: list[Any] = []
    troubles: list[str] = []

    def open_new(**options: Any) -> Any:
        context = browser.new_context(**{"locale": "en-GB", "viewport": {"width": 1200, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(5000)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: _note(troubles, message))
        page.goto(server.url)
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_new
    for context in contexts:
        context.close()
    assert not troubles


def _note(troubles: list[str], message: Any) -> None:
    # The browser writes a line for every response that is an error; those are what some tests are about.
    if message.type == "error" and "Failed to load resource" not in message.text:
        troubles.append(message.text)


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    return open_page()


@pytest.fixture
def answer() -> type[Answer]:
    return Answer
