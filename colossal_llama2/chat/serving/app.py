"""The application: which path does what."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from colossal_llama2.chat.serving.api_errors import ApiError
from colossal_llama2.chat.serving.metrics import Metrics
from colossal_llama2.chat.serving.model_service import ModelService, find_service
from colossal_llama2.chat.serving.page_files import HEADERS, PageFile
from colossal_llama2.chat.serving.replies import Kind, Reply
from colossal_llama2.chat.serving.request_fields import ChatFields, CompletionFields, parse_chat, parse_completion
from colossal_llama2.chat.serving.sending import EventStream, GoneError, read_body, while_there
from colossal_llama2.chat.serving.settings import LimitOptions
from colossal_llama2.chat.serving.tickets import Prompt, Ticket

DROPPED_HEADER = "X-Dropped-Messages"
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Api:
    """What the paths do.

    Args:
        services: the models.
        limits: of requests.
        metrics: what /metrics shows.

    Attributes:
        is_draining: asked for /health: whether the server is ending.
    """

    def __init__(self, services: Sequence[ModelService], limits: LimitOptions, metrics: Metrics) -> None:
        self._services, self._limits, self._metrics = services, limits, metrics
        self.is_draining: Callable[[], bool] = lambda: False
        # Encoding a long prompt takes a while and must not hold up the others; one at a time, as encoders want it.
        self._encoding = ThreadPoolExecutor(1, "encoding")

    async def health(self) -> Response:
        """Say whether the server takes requests; a load balancer sends it none when it says 503."""
        draining = self.is_draining()
        return JSONResponse({"status": "ending" if draining else "ok"}, 503 if draining else 200)

    async def metrics(self) -> Response:
        """Show all figures."""
        return Response(self._metrics.page(), media_type=_METRICS_TYPE)

    async def models(self) -> Response:
        """List the models."""
        return JSONResponse({"object": "list", "data": [service.describe() for service in self._services]})

    async def model(self, name: str) -> Response:
        """Describe one model."""
        return JSONResponse(find_service(self._services, name).describe())

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        fields = parse_chat(await self._body(request))
        service = find_service(self._services, fields.model)
        return await self._answer(request, fields, service, "chat")

    async def completion(self, request: Request) -> Response:
        """Continue a text."""
        fields = parse_completion(await self._body(request))
        service = find_service(self._services, fields.model)
        return await self._answer(request, fields, service, "completion")

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a browser may send other kinds to any server, whatever page it shows
            raise ApiError(415, "The Content-Type must be application/json.", "unsupported_media_type")
        return await read_body(request.receive, self._limits.max_body_bytes, self._limits.idle_seconds)

    async def _answer(
        self, request: Request, fields: ChatFields | CompletionFields, service: ModelService, kind: Kind
    ) -> Response:
        if fields.stream_options is not None and not fields.stream:
            raise ApiError(400, "stream_options is for streams alone.", "invalid_value", "stream_options")
        ticket = Ticket(self._limits.max_seconds)
        handed_over = False
        try:
            prompts = await self._encoded(service, fields)
            service.submit(ticket, prompts)
            dropped = sum(prompt.num_dropped for prompt in prompts)
            said = {DROPPED_HEADER: str(dropped)} if dropped else {}
            reply = Reply(kind, service.name, prompts, ticket)
            if not fields.stream:
                return JSONResponse(await while_there(request.receive, reply.whole()), headers=said)
            events = reply.events(fields.stream_options is not None and fields.stream_options.include_usage)
            first = await while_there(request.receive, anext(events))
            handed_over = True
            ended = functools.partial(_cancel, ticket, service)
            return EventStream(_with_first(first, events), self._limits.max_seconds, said, ended)
        finally:
            if not handed_over:
                _cancel(ticket, service)

    async def _encoded(self, service: ModelService, fields: ChatFields | CompletionFields) -> list[Prompt]:
        loop = asyncio.get_running_loop()
        if isinstance(fields, ChatFields):
            return await loop.run_in_executor(self._encoding, service.chat_prompts, fields)
        return await loop.run_in_executor(self._encoding, service.completion_prompts, fields)


def build_app(api: Api, page: Mapping[str, PageFile]) -> FastAPI:
    """Return the application of an API and the files of a page."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", api.health, methods=["GET", "HEAD"], response_model=None)
    app.add_api_route("/metrics", api.metrics, response_model=None)
    app.add_api_route("/v1/models", api.models, response_model=None)
    app.add_api_route("/v1/models/{name:path}", api.model, response_model=None)
    app.add_api_route("/v1/chat/completions", api.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", api.completion, methods=["POST"], response_model=None)
    for path, file in page.items():
        app.add_api_route(path, _sender(file), methods=["GET", "HEAD"], response_model=None)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(GoneError, _gone)
    app.add_exception_handler(Exception, _failure)
    return app


def _sender(file: PageFile) -> Any:
    async def send() -> Response:
        return Response(file.content, media_type=file.content_type, headers=HEADERS)

    return send


async def _with_first(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for event in events:
        yield event


def _cancel(ticket: Ticket, service: ModelService) -> None:
    """End what a request has begun; nothing happens where it has ended already."""
    ticket.cancelled = True
    service.worker.wake()


async def _api_error(request: Request, error: Any) -> Response:
    return JSONResponse(error.body(), error.status, headers=_closing(error))


async def _http_error(request: Request, error: Any) -> Response:
    messages = {404: f"There is nothing at {request.url.path[:100]}.", 405: "This path does not take this method."}
    message = messages.get(error.status_code, str(error.detail)[:200])
    shown = ApiError(error.status_code, message, "not_found" if error.status_code == 404 else "bad_request")
    return JSONResponse(shown.body(), shown.status, headers=error.headers)


async def _gone(request: Request, error: Any) -> Response:
    request.scope.setdefault("state", {})["gone"] = True
    return Response(status_code=499)


async def _failure(request: Request, error: Any) -> Response:
    return JSONResponse(ApiError(500, "The server failed.", "server_failed").body(), 500)


def _closing(error: ApiError) -> dict[str, str]:
    """Return an error's headers; where the body was not read to its end the connection cannot be used again."""
    return {**error.headers(), **({"Connection": "close"} if error.status in (408, 413, 415) else {})}
