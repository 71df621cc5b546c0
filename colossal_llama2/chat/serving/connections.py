"""Connections that are bounded: in number, and in the time they may take to say what they want."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from colossal_llama2.chat.serving.api_errors import bad_request
from colossal_llama2.chat.serving.metrics import Metrics


@dataclass(frozen=True)
class ConnectionBounds:
    """What connections are held to.

    Attributes:
        number: open at a time; further ones are closed at once.
        seconds: from the beginning of a connection, or of the wait for its next request, to whole headers.
    """

    number: int
    seconds: float


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP protocol with bounds that it lacks: it waits without end for headers that never come."""

    def __init__(self, bounds: ConnectionBounds, metrics: Metrics, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._bounds, self._metrics = bounds, metrics
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, unless there are too many."""
        super().connection_made(transport)
        self._metrics.connections.set(len(self.connections))
        if len(self.connections) > self._bounds.number:
            transport.abort()
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_timer()
        super().connection_lost(exc)
        self._metrics.connections.set(len(self.connections))

    def handle_events(self) -> None:
        """Take what has come."""
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()  # whole headers have come; the application bounds the rest

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self._start_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as the API answers a bad request."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # the reply to an earlier request is on its way
            return
        body = orjson.dumps(bad_request(msg, code="invalid_http").body())
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: anyone may ask for an upgrade, and a line for each would fill the log."""

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self._bounds.seconds, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
