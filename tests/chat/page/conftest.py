"""Headless Chromium before the page, and a chat server of a few lines behind it that answers what a test tells it."""

from __future__ import annotations

import contextlib
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
from typing import Any, Final, NoReturn

import pytest

CONTENT_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FLAGS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
NEED_VARIABLE: Final = "COLOSSAL_LLAMA2_NEED_CHROMIUM"


_KEPT: Final = """
async () => {
  const opened = (request) => new Promise((resolve) => (request.onsuccess = () => resolve(request.result)));
  const database = await opened(indexedDB.open("colossal-llama2-chat"));
  const all = await opened(database.transaction("conversations").objectStore("conversations").getAll());
  database.close();
  return JSON.stringify(all);
}
"""


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
        without_template: names of models that take no conversations.
        answers: taken one after the other; without one it repeats the question.
        requests: bodies of the chat requests, in order.
        hung_up: set once a client has gone away in the middle of an answer.
    """

    url: str = ""
    models: list[str] = field(default_factory=lambda: ["adapted-7b"])
    key: str = ""
    without_template: Sequence[str] = ()
    answers: list[Answer] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)

    def next_answer(self, body: dict[str, Any]) -> Answer:
        """Note a request and say how it is answered."""
        self.requests.append(body)
        if self.answers:
            return self.answers.pop(0)
        asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        return Answer([f"{body['model']} heard: ", asked])


def _delta(part: str) -> dict[str, Any]:
    return {"delta": {"content": part}}


def _text(part: str) -> dict[str, Any]:
    return {"text": part}


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
        if "messages" in body and body["model"] in self.fake.without_template:
            self._send_error(400, "No chat template.", {}, "no_chat_template")
            return
        answer = self.fake.next_answer(body)
        if answer.status != 200:
            self._send_error(answer.status, answer.message, answer.headers)
            return
        try:
            self._stream(answer, _delta if "messages" in body else _text)
        except OSError:
            self.fake.hung_up.set()

    def _stream(self, answer: Answer, written: Callable[[str], dict[str, Any]]) -> None:
        self.close_connection = True
        self.send_response(200)
        for name, value in {"Content-Type": "text/event-stream", "Connection": "close", **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for index, part in enumerate(answer.parts):
            if answer.gate is not None and index == answer.gate_at:
                self._wait(answer.gate)
            self._event({"choices": [{"index": 0, **written(part), "finish_reason": None}]})
            time.sleep(answer.pause)
        if answer.event is not None:
            self.wfile.write(f"data: {answer.event}\n\n".encode())
        elif answer.finish:
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": answer.finish}]})
            self._event({"choices": [], "usage": {"completion_tokens": len(answer.parts)}})
            self.wfile.write(b"data: [DONE]\n\n")

    def _wait(self, gate: threading.Event) -> None:
        """Wait for the test; comments in between let a client that has gone be noticed."""
        for _ in range(2000):
            if gate.wait(0.02):
                return
            self.wfile.write(b": waiting\n\n")
        raise AssertionError("no test opened the gate within forty seconds")

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def _let_in(self) -> bool:
        if self.fake.key and self.headers.get("Authorization") != f"Bearer {self.fake.key}":
            self._send_error(401, "Wrong API key.", {"WWW-Authenticate": "Bearer"})
            return False
        return True

    def _send_error(self, status: int, message: str, headers: dict[str, str], code: str | None = None) -> None:
        error = {"message": message, "type": "error", "param": None, "code": code}
        self._send(status, json.dumps({"error": error}).encode(), "application/json", headers)

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        own = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in {**own, "Content-Security-Policy": CONTENT_POLICY, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Chat:
    """The page as a person uses it."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def ask(self, question: str, *, wait: bool = True) -> None:
        """Type a question, press Enter and, if asked to, wait for the end of the answer."""
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        if wait:
            self.page.locator(".question .bubble", has_text=question).last.wait_for()
            self.wait()

    def wait(self) -> None:
        """Wait until no answer is coming in and what came is on the page."""
        self.page.wait_for_selector('#composer button[data-shows="send"]')

    def sees(self, text: str) -> None:
        """Wait until a text stands in the conversation, and not only in what a screen reader is told."""
        self.page.locator("#main").get_by_text(text).first.wait_for()

    def texts(self, selector: str) -> list[str]:
        """Return the visible texts of all elements that the selector finds."""
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]

    def questions(self) -> list[str]:
        return self.texts(".question .bubble")

    def answers(self) -> list[str]:
        return self.texts(".answer .markdown")

    def titles(self) -> list[str]:
        return self.texts("#conversations .title")

    def wait_for_kept(self, text: str) -> None:
        """Wait until the browser's database holds a text."""
        deadline = time.monotonic() + 20
        while text not in self.page.evaluate(_KEPT):
            assert time.monotonic() < deadline, f"{text!r} is not kept"
            time.sleep(0.05)

    def reload(self) -> None:
        self.page.reload()
        self.page.wait_for_selector("html[data-ready]")


@contextlib.contextmanager
def _listening() -> Iterator[FakeServer]:
    fake = FakeServer()
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with _listening() as fake:
        yield fake


def _do_without(reason: str) -> NoReturn:
    """Skip what needs a browser, or fail where it must not be skipped."""
    if os.environ.get(NEED_VARIABLE):
        pytest.fail(f"{reason} ({NEED_VARIABLE} is set)")
    pytest.skip(reason)


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """One Chromium for all tests of the page."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        _do_without("no Chromium found: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        _do_without("no playwright found: pip install -r requirements-dev.txt")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=list(_FLAGS))
        yield started
        started.close()


_OPTIONS: Final = {"locale": "en-GB", "viewport": {"width": 1200, "height": 800}}


@pytest.fixture(scope="package")
def usual_context(browser: Any) -> Any:
    """The browser as most tests want it; a server on a port of its own keeps each test's storage apart."""
    return browser.new_context(**_OPTIONS, permissions=["clipboard-read", "clipboard-write"])


@pytest.fixture
def open_page(browser: Any, usual_context: Any, server: FakeServer) -> Iterator[Callable[..., Chat]]:
    """Open the page, after a script if one is given; fails the test for any error in the browser's console."""
    own_contexts: list[Any] = []
    troubles: list[str] = []

    def open_new(*, before: str = "", **options: Any) -> Chat:
        context = usual_context
        if before or options:
            context = browser.new_context(**{**_OPTIONS, **options})
            own_contexts.append(context)
        if before:
            context.add_init_script(before)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: _note(troubles, message))
        page.goto(server.url)
        page.wait_for_selector("html[data-ready]")
        return Chat(page)

    yield open_new
    for page in usual_context.pages:
        page.close()
    for context in own_contexts:
        context.close()
    assert not troubles


@pytest.fixture(scope="package")
def modules(browser: Any) -> Iterator[Callable[..., Any]]:
    """Call a function of the page's modules on a page with nothing on it: `modules("(m, a) => ...", file, a)`."""
    context = browser.new_context(**_OPTIONS)
    page = context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    with _listening() as fake:
        page.goto(f"{fake.url}nothing")

        def call(function: str, file: str, argument: Any = None) -> Any:
            script = f"async ([file, argument]) => ({function})(await import(file), argument)"
            return page.evaluate(script, [f"/{file}", argument])

        yield call
        context.close()
    assert not troubles


def _note(troubles: list[str], message: Any) -> None:
    # The browser writes a line for every response that is an error; those are what some tests are about.
    if message.type == "error" and "Failed to load resource" not in message.text:
        troubles.append(message.text)


@pytest.fixture
def chat(open_page: Callable[..., Chat]) -> Chat:
    return open_page()


@pytest.fixture
def answer() -> type[Answer]:
    return Answer
