"""The fields of a request, as the API documents them; what this server does not do is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from colossal_llama2.chat.serving.api_errors import ApiError, bad_request, unsupported

_MOST_STOPS = 16
_MOST_CHOICES = 64
# Fields that ask for something else than text, or for another way of writing it: value that changes nothing -> allowed.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# Fields that are for the provider's books and change no answer.
_WITHOUT_EFFECT = ("metadata", "prompt_cache_key", "safety_identifier", "store", "user")


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Fields):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(_Fields):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: str | None = None

    def text(self) -> str:
        """Return the content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_Fields):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: bool = False


_Number = Annotated[float, Field(allow_inf_nan=False)]


class SharedFields(_Fields):
    """What both kinds of completions take."""

    model: str
    temperature: Annotated[_Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[_Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    presence_penalty: Annotated[_Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[_Number, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[_Number, Field(ge=-100, le=100)]] | None = None

    def stops(self) -> list[str]:
        """Return the stop strings.

        Raises:
            ApiError: one is empty, or there are too many.
        """
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > _MOST_STOPS or not all(stops):
            raise bad_request(f"Give up to {_MOST_STOPS} stop strings, none of them empty.", "stop")
        return stops


class ChatFields(SharedFields):
    """A request to /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    # Of the API's /v1/responses: `auto` leaves out the oldest messages of a conversation that is too long.
    truncation: Literal["auto", "disabled"] | None = None


class CompletionFields(SharedFields):
    """A request to /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]

    def prompts(self) -> list[str | list[int]]:
        """Return each prompt, a text or tokens.

        Raises:
            ApiError: there is none.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        prompts: list[Any] = self.prompt  # type: ignore[assignment]
        if not prompts:
            raise bad_request("The prompt is an empty list.", "prompt")
        return [prompts] if isinstance(prompts[0], int) else prompts


Kind = TypeVar("Kind", bound=SharedFields)


def parse_chat(body: bytes) -> ChatFields:
    """Read a request to /v1/chat/completions.

    Raises:
        ApiError: see `_parse`.
    """
    return _parse(ChatFields, body)


def parse_completion(body: bytes) -> CompletionFields:
    """Read a request to /v1/completions.

    Raises:
        ApiError: see `_parse`.
    """
    return _parse(CompletionFields, body)


def _parse(kind: type[Kind], body: bytes) -> Kind:
    """Check the fields of a request.

    Raises:
        ApiError: it is no JSON object in UTF-8, a field is wrong, unknown, or asks for what this server does not do.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"The body is not JSON in UTF-8: {error}.", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise bad_request("The body is not a JSON object.", code="invalid_json")
    known: dict[str, Any] = {}
    for name, value in fields.items():
        if name in kind.model_fields:
            known[name] = value
        elif name in _UNSUPPORTED:
            if value is not None and value not in _UNSUPPORTED[name]:
                raise unsupported(name)
        elif name not in _WITHOUT_EFFECT:
            raise bad_request(f"Unknown parameter: {_quoted(name)}.", _quoted(name), "unknown_parameter")
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        raise _wrong_field(error) from None


def _wrong_field(error: ValidationError) -> ApiError:
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    # Where a field may be of several kinds, each complains; the one that came furthest is the one that was meant.
    first = max(errors, key=lambda one: len(one["loc"]))
    path = [str(part) if isinstance(part, int) else _quoted(part) for part in first["loc"] if not _is_kind(part)]
    param = ".".join(path) or None
    if first["type"] == "missing":
        return bad_request(f"Missing required parameter: {param}.", param, "missing_required_parameter")
    return bad_request(f"Invalid value for {param}: {first['msg']}.", param)


def _is_kind(part: str | int) -> bool:
    """Tell whether a part of pydantic's path names one kind of several that a field may be of."""
    return isinstance(part, str) and (part == "str" or part.startswith("list["))


def _quoted(name: str) -> str:
    """Return a name from a request, short enough to be said back."""
    return name if len(name) <= 60 else name[:60] + "..."
