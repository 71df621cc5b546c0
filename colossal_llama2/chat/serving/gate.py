"""The gate every request passes: who may come in, what is counted, and what the log says."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from colossal_llama2.chat.serving.api_errors import ApiError
from colossal_llama2.chat.serving.metrics import Metrics
from colossal_llama2.chat.serving.worker import shutting_down

ACCESS_LOG: Final = logging.getLogger("colossal_llama2.access")
_LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_SAFE: Final = ("GET", "HEAD")
_COUNTED: Final = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/")


@dataclass(frozen=True)
class Guests:
    """Who is let in.

    Attributes:
        keys: API keys; none where none is asked for.
        hosts: names the server may be called by; empty for any.
        origins: web origins besides the server's own.
        open_paths: what may be read without a key.
    """

    keys: tuple[bytes, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    open_paths: Collection[str] = ()


def local_names(host: str, more: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names that a server on this machine alone may be called by.

    A page elsewhere can have its own name point to this machine, and would then be let in by the browser as the
    server's own page.
    """
    return (*_LOCAL_NAMES, host.strip("[]"), *more)


class Gate:
    """An application around the application.

    Args:
        app: what answers those who are let in.
        guests: who is.
        metrics: where requests are counted.

    Attributes:
        draining: whether new requests are turned away because the server ends.
        active: requests that are being answered.
    """

    def __init__(self, app: ASGIApp, guests: Guests, metrics: Metrics) -> None:
        self._app, self._guests, self._metrics = app, guests, metrics
        self.draining = False
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # what proxies write for a client that went away unanswered
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        allowed = self._cors(headers.get("origin"))

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *allowed]
            await send(message)

        self.active += 1
        try:
            if allowed and scope["method"] == "OPTIONS":
                await _preflight(counting_send, headers)
                return
            try:
                self._check(scope, headers)
            except ApiError as error:
                await send_error(counting_send, error)
                return
            await self._app(scope, receive, counting_send)
        except BaseException:
            status = 500 if status == 499 else status
            raise
        finally:
            self.active -= 1
            if scope.get("state", {}).get("gone"):
                status = 499
            self._note(scope, status, time.monotonic() - began)

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        guests, path = self._guests, scope["path"]
        host = headers.get("host", "")
        if guests.hosts and _name(host) not in guests.hosts:
            what = "The server is not called by this name; --allow_host adds names."
            raise ApiError(403, what, "unknown_host")
        origin = headers.get("origin")
        foreign = origin is not None and origin not in guests.origins and _place(origin) != host
        if foreign and scope["method"] not in _SAFE:
            what = "Pages of other origins may not call this server; --allow_origin adds origins."
            raise ApiError(403, what, "unknown_origin")
        if guests.keys and path not in guests.open_paths and not self._knows(headers.get("authorization", "")):
            raise ApiError(401, "The API key is missing or wrong.", "invalid_api_key")
        if self.draining and path not in guests.open_paths:
            raise shutting_down()

    def _knows(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        given = key.strip().encode("latin-1")
        # All are compared, each in constant time: how long it takes tells nothing of a key.
        matches = [hmac.compare_digest(given, known) for known in self._guests.keys]
        return scheme.lower() == "bearer" and any(matches)

    def _cors(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        if origin is None or origin not in self._guests.origins:
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", b"X-Dropped-Messages, Retry-After"),
            (b"vary", b"Origin"),
        ]

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"]
        self._metrics.requests.labels(path if path in _COUNTED else "other", str(status)).inc()
        client = (scope.get("client") or ("-",))[0]
        # Neither bodies nor query strings: what people ask stays out of the log.
        shown = ascii(path[:100])[1:-1]
        ACCESS_LOG.info("%s %s %s %d %.3fs", client, ascii(scope["method"][:10])[1:-1], shown, status, seconds)


async def send_error(send: Send, error: ApiError) -> None:
    """Answer with an error object; the connection is closed, since the request may not have been read."""
    body = orjson.dumps(error.body())
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **error.headers(),
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def _preflight(send: Send, headers: dict[str, str]) -> None:
    asked = headers.get("access-control-request-headers", "authorization, content-type")
    granted = [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", asked.encode("latin-1")),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": granted})
    await send({"type": "http.response.body", "body": b""})


def _name(host: str) -> str:
    """Return a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _place(origin: str) -> str | None:
    """Return the host and port of an Origin header; None where it names none."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:  # such as http://[x]
        return None
