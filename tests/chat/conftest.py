"""An endpoint on the loopback, which answers the same to the same request and makes trouble as it is told."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.chat.answer_journal import Reply, open_journal
from colossal_llama2.chat.asking import Asker, AskingOptions
from colossal_llama2.chat.endpoint import EndpointOptions, TroubleError
from colossal_llama2.chat.progress import Progress
from colossal_llama2.chat.spending import Spending, SpendingOptions

_WORDS = [
    *("river", "mountain", "copper", "theory", "garden", "window", "market", "engine", "letter", "winter", "history"),
    *("planet", "kitchen", "bridge", "forest", "number", "island", "silver", "poem", "lamp", "carpet", "violin"),
    *("harbour", "glacier", "pepper", "wagon", "temple", "mirror", "saddle", "candle", "orchard", "needle", "storm"),
]
Body = dict[str, Any]


@dataclass
class FakeEndpoint:
    """What a test tells the endpoint, and what the endpoint saw.

    Attributes:
        base_url: where it listens.
        say: makes the text of an answer from the request.
        trouble: given a request and how often it came before, what to do instead of answering, by any of: status,
            headers, raw (the bytes to send), seconds (of silence before), hang_up; None answers.
        choice: fields to put over those of the first choice.
        usage: whether tokens are reported.
        answered: the requests that got an answer, in the order they did.
        seen: all requests, and the headers of each.
    """

    base_url: str
    say: Callable[[Body], str]
    trouble: Callable[[Body, int], dict[str, Any] | None] = lambda body, before: None
    choice: dict[str, Any] = field(default_factory=dict)
    usage: bool = True
    answered: list[Body] = field(default_factory=list)
    seen: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def sensible(body: Body) -> str:
    """Answer as a model would that understands the package's prompts."""
    text = body["messages"][-1]["content"]
    spelled = json.dumps(body["messages"]) + str(body.get("seed"))
    draw = random.Random(hashlib.sha256(spelled.encode()).hexdigest())

    def sentence() -> str:
        return " ".join(draw.choice(_WORDS) for _ in range(12)).capitalize() + "."

    if listed := re.search(r"JSON (?:array of|数组)?.*?(\d+) strings", text):
        return json.dumps([sentence() for _ in range(int(listed[1]))])
    if "含有 8 个字符串" in text:
        return "".join(
            f"{'一二三四五六七八'[place]}、第{draw.randrange(10**9)}号任务{sentence()}\n" for place in range(8)
        )
    if "yes or no" in text:
        return "Yes." if draw.random() < 0.3 else "no"
    if '"scores"' in text:
        answers = re.findall(r"^<answer \d+>\n(.*)$", text, re.MULTILINE)
        scores = [1 + hashlib.sha256(answer.encode()).digest()[0] / 29 for answer in answers]
        return f"Here you are:\n```json\n{json.dumps({'scores': scores})}\n```"
    if '"output"' in text:
        return f"```json\n{json.dumps({'input': sentence(), 'output': sentence()})}\n```"
    return sentence()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoint]:
    """Start the endpoint on a free port of the loopback; it ends with the test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    fake = FakeEndpoint(f"http://127.0.0.1:{server.server_address[1]}/v1", sensible)
    server.fake = fake  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class FakeSender:
    """Answers without a connection; a text that begins with ``!`` is the name of a failure."""

    say: Callable[[Body], str]
    seen: list[Body] = field(default_factory=list)

    async def send(self, body: Mapping[str, Any]) -> Reply:
        """Answer."""
        self.seen.append(dict(body))
        await asyncio.sleep(0)
        text = self.say(dict(body))
        if text.startswith("!"):
            raise TroubleError(text[1:])
        return Reply(text, prompt_tokens=1, completion_tokens=1)


@pytest.fixture
def ask_with(tmp_path: Path) -> Callable[..., tuple[Any, list[Body]]]:
    """Give a function that lets work ask a fake: `ask_with(say, work, max_requests=None)` -> (result, requests)."""
    return partial(_ask_with, tmp_path / "a.journal")


def _ask_with(
    path: Path,
    say: Callable[[Body], str],
    work: Callable[[Asker, Progress], Awaitable[Any]],
    max_requests: int | None = None,
    malformed_retries: int = 0,
) -> tuple[Any, list[Body]]:
    sender = FakeSender(say)
    options = AskingOptions(first_wait=0.0, max_retries=0, malformed_retries=malformed_retries, max_failures=100)

    async def inside() -> Any:
        with open_journal(path, {}) as journal:
            spending = Spending(SpendingOptions(max_requests=max_requests), journal)
            asker = Asker(sender, journal, spending, EndpointOptions("http://x/v1", "m"), options, 1)
            return await work(asker, Progress(spending))

    return asyncio.run(inside()), sender.seen


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        fake: FakeEndpoint = self.server.fake  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with fake.lock:
            before = fake.seen.count(body)
            fake.seen.append(body)
            fake.headers.append({name.lower(): value for name, value in self.headers.items()})
            fake.at_once += 1
            fake.most_at_once = max(fake.most_at_once, fake.at_once)
        trouble = fake.trouble(body, before)
        time.sleep((trouble or {}).get("seconds", 0.0))
        completion = _completion(fake, body)
        with fake.lock:
            fake.at_once -= 1  # before anything is sent: who asks may send the next request at once
            if trouble is None:
                fake.answered.append(body)
        if trouble is None:
            self._send(200, completion, {})
        elif trouble.get("hang_up"):
            self.close_connection = True
            self.connection.close()
        else:
            self._send(trouble.get("status", 200), trouble.get("raw", b"{}"), trouble.get("headers", {}))

    def _send(self, status: int, raw: bytes, headers: dict[str, str]) -> None:
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)
        except OSError:
            self.close_connection = True  # whoever asked is gone

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _completion(fake: FakeEndpoint, body: Body) -> bytes:
    content = fake.say(body)
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}, **fake.choice}
    said = sum(len(message["content"]) for message in body["messages"])
    usage = {"prompt_tokens": said // 4 + 1, "completion_tokens": len(content) // 4 + 1}
    return json.dumps({"id": "x", "choices": [choice], **({"usage": usage} if fake.usage else {})}).encode()
