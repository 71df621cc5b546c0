"""Replies in the API's form: whole, and as the chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import orjson

from colossal_llama2.chat.serving.api_errors import ApiError
from colossal_llama2.chat.serving.tickets import Part, Prompt, Ticket

Kind = Literal["chat", "completion"]
FILTERED = "This was ended by the server's word filter."
_DONE = b"data: [DONE]\n\n"


class Reply:
    """The reply to one request.

    Args:
        kind: which of the two APIs it belongs to.
        model: the model's name.
        prompts: what was asked; its texts come in this order, those of one prompt together.
        ticket: where the parts come from.
    """

    def __init__(self, kind: Kind, model: str, prompts: Sequence[Prompt], ticket: Ticket) -> None:
        self._kind, self._ticket = kind, ticket
        self._num_texts = sum(len(prompt.options) for prompt in prompts)
        self._prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        self._counts = [0] * self._num_texts
        prefix, name = ("chatcmpl", "chat.completion") if kind == "chat" else ("cmpl", "text_completion")
        self._object = name
        self._head = {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    async def whole(self) -> dict[str, Any]:
        """Wait for all texts and return the reply.

        Raises:
            ApiError: one failed.
        """
        texts = [""] * self._num_texts
        reasons = [""] * self._num_texts
        async for part in self._parts():
            texts[part.index] += part.text
            reasons[part.index] = part.finish_reason or ""
        choices = [self._choice(*it) for it in zip(range(self._num_texts), texts, reasons, strict=True)]
        return {**self._head, "object": self._object, "choices": choices, "usage": self._usage()}

    async def events(self, with_usage: bool) -> AsyncIterator[bytes]:
        """Yield the reply as server-sent events; after the first one a failure is an event too.

        Raises:
            ApiError: it failed before there was anything to send.
        """
        begun = False
        try:
            async for part in self._parts():
                if not begun and self._kind == "chat":
                    for index in range(self._num_texts):
                        first = {"role": "assistant", "content": "", "refusal": None}
                        yield self._event([{"index": index, "delta": first, **_PENDING}], with_usage)
                begun = True
                for choice in self._deltas(part):
                    yield self._event([choice], with_usage)
        except ApiError as error:
            if not begun:
                raise
            yield _sse(error.body())
            return
        if with_usage:
            yield self._event([], with_usage, self._usage())
        yield _DONE

    async def _parts(self) -> AsyncIterator[Part]:
        async for part in self._ticket.parts(self._num_texts):
            self._counts[part.index] = part.num_tokens
            yield part

    def _choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        rest = {"index": index, "logprobs": None, "finish_reason": reason}
        if self._kind == "completion":
            return {"text": text, **rest}
        refusal = FILTERED if reason == "content_filter" else None
        return {"message": {"role": "assistant", "content": text, "refusal": refusal}, **rest}

    def _deltas(self, part: Part) -> list[dict[str, Any]]:
        if self._kind == "completion":
            return [{"index": part.index, "text": part.text, "logprobs": None, "finish_reason": part.finish_reason}]
        deltas: list[dict[str, Any]] = []
        if part.text:
            deltas.append({"index": part.index, "delta": {"content": part.text}, **_PENDING})
        if part.finish_reason is not None:
            delta = {"refusal": FILTERED} if part.finish_reason == "content_filter" else {}
            rest = {"logprobs": None, "finish_reason": part.finish_reason}
            deltas.append({"index": part.index, "delta": delta, **rest})
        return deltas

    def _event(self, choices: Sequence[dict[str, Any]], with_usage: bool, usage: dict[str, int] | None = None) -> bytes:
        name = self._object + (".chunk" if self._kind == "chat" else "")
        return _sse({**self._head, "object": name, "choices": choices, **({"usage": usage} if with_usage else {})})

    def _usage(self) -> dict[str, int]:
        written = sum(self._counts)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self._prompt_tokens + written,
        }


_PENDING: dict[str, Any] = {"logprobs": None, "finish_reason": None}


def _sse(fields: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"
