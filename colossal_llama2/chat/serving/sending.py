"""Reading a request's body and sending its reply, while watching whether the client is still there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from colossal_llama2.chat.serving.api_errors import ApiError, bad_request

Result = TypeVar("Result")
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
# A client that sends too much hears of it only when it has sent; up to this many times the limit is read and dropped.
_PATIENCE = 16


class GoneError(Exception):
    """The client has gone."""


async def read_body(receive: Receive, limit: int, seconds: float) -> bytes:
    """Read a request's body.

    Args:
        receive: of the request.
        limit: its largest size in bytes; what goes beyond is dropped as it comes.
        seconds: how long the client may take.

    Raises:
        ApiError: it is too large, or takes too long.
        GoneError: the client has gone.
    """
    body, size, more = bytearray(), 0, True
    try:
        async with asyncio.timeout(seconds):
            while more and size <= _PATIENCE * limit:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise GoneError
                size += len(message.get("body", b""))
                if size <= limit:
                    body += message.get("body", b"")
                else:
                    body.clear()
                more = message.get("more_body", False)
    except TimeoutError:
        raise ApiError(408, f"The request was not sent within {seconds:g} seconds.", "request_timeout") from None
    if size > limit:
        raise ApiError(413, f"The body is larger than {limit} bytes.", "request_too_large")
    if not body:
        raise bad_request("The body is empty.", code="invalid_json")
    return bytes(body)


async def while_there(receive: Receive, work: Awaitable[Result]) -> Result:
    """Await something unless the client goes away before.

    Raises:
        GoneError: it did.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise GoneError
        return working.result()
    finally:
        gone.cancel()
        working.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


class EventStream(Response):
    """Server-sent events, sent as they come.

    Args:
        events: the events.
        seconds: how long a client may take to receive one.
        headers: beside those of every stream.
        ended: called when no more will be sent, whether all was or not.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        seconds: float,
        headers: Mapping[str, str],
        ended: Callable[[], object],
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={**_STREAM_HEADERS, **headers})
        # A plain response knows its length, a stream does not.
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        self._events, self._seconds, self._ended = events, seconds, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them all, unless the client goes away, or takes too long to receive."""
        try:
            await while_there(receive, self._send_all(send))
        except (GoneError, TimeoutError, OSError):
            scope.setdefault("state", {})["gone"] = True
        finally:
            self._ended()

    async def _send_all(self, send: Send) -> None:
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events:
            await self._send(send, {"type": "http.response.body", "body": event, "more_body": True})
        await self._send(send, {"type": "http.response.body", "body": b""})

    async def _send(self, send: Send, message: Message) -> None:
        async with asyncio.timeout(self._seconds):
            await send(message)


async def _until_gone(receive: Receive) -> None:
    while True:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            return
