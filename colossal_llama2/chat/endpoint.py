"""An OpenAI-compatible endpoint: one request, one answer; no retries, no limits, no state."""

from __future__ import annotations

import asyncio
import email.utils
import importlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from colossal_llama2 import cli
from colossal_llama2.chat.answer_journal import Reply
from colossal_llama2.errors import InputError

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_PASSING: Final = (408, 409, 425, 429)  # client errors that another try may not meet
_MAX_QUOTED = 300


@dataclass(frozen=True)
class EndpointOptions:
    """Which model answers, where, and how it is sampled."""

    base_url: str
    """Where the endpoint is, up to /v1: http://localhost:8000/v1."""
    model: str
    """Name of the model, as the endpoint knows it."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; without this and --api_key_file no key is sent."""
    api_key_file: Path | None = None
    """File that holds the API key alone."""
    temperature: float | None = 0.8
    """Sampling temperature; None leaves it to the endpoint."""
    top_p: float | None = None
    """Nucleus sampling; None leaves it to the endpoint."""
    max_tokens: int = 1024
    """Most tokens of an answer; one that is cut there counts as malformed."""
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls that limit; some models know the second name only."""
    send_seed: bool = True
    """Send a seed with every request, made of --seed; --no_send_seed for endpoints that know none."""
    timeout: float = 300.0
    """Seconds until an answer counts as lost."""


class TroubleError(Exception):
    """A request failed in a way that another try may not: too many requests, a server's error, a lost connection.

    Args:
        reason: its name in the ledger.
        retry_after: seconds the endpoint asks to wait; None where it does not say.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.retry_after = reason, retry_after


def check_endpoint(options: EndpointOptions) -> None:
    """Refuse an address or limits that cannot work, before anything is sent.

    Raises:
        InputError: which.
    """
    parts = urlsplit(options.base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("--base_url is no http address", remedy="write http://HOST:PORT/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        what = "--base_url holds more than an address"
        raise InputError(what, remedy="give a key with --api_key_env or --api_key_file")
    if options.max_tokens < 1 or not options.timeout > 0:
        raise InputError("--max_tokens and --timeout must be positive", remedy="give more than 0")
    if options.api_key_env is not None and options.api_key_file is not None:
        raise InputError("two API keys", remedy="give either --api_key_env or --api_key_file")


def read_key(options: EndpointOptions) -> str | None:
    """Return the API key; None where none is to be sent. A complaint never quotes it.

    Raises:
        InputError: it is not there, or no key.
    """
    if options.api_key_env is not None:
        key, where = os.environ.get(options.api_key_env, ""), f"the environment variable {options.api_key_env}"
    elif options.api_key_file is not None:
        where = str(options.api_key_file)
        try:
            key = options.api_key_file.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", path=options.api_key_file) from None
        except UnicodeDecodeError:
            raise InputError("holds no API key", path=options.api_key_file) from None
    else:
        return None
    key = key.strip()
    if not key or any(not "!" <= character <= "~" for character in key):
        raise InputError(f"{where} holds no API key", remedy="put the key there, alone and on one line")
    parts = urlsplit(options.base_url)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        cli.warn(f"the API key goes to {parts.hostname} without encryption")
    return key


class Endpoint:
    """Sends requests to a chat completions address through the official client, whose own retries are off.

    Args:
        options: where and how.
        key: the API key; None sends none.

    Raises:
        InputError: the client is not installed.
    """

    def __init__(self, options: EndpointOptions, key: str | None) -> None:
        self._library = import_extra("openai")
        self._options = options
        self._key = key
        # The client takes a key from the environment where it is given none, so it is given a word, and told with every
        # request to leave the header out.
        self._headers = {} if key else {"Authorization": self._library.Omit()}
        self._client: Any = self._library.AsyncOpenAI(
            base_url=options.base_url,
            api_key=key or "none",
            max_retries=0,
            timeout=options.timeout,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def send(self, body: Mapping[str, Any]) -> Reply:
        """Ask once.

        Args:
            body: what is posted to /chat/completions.

        Raises:
            TroubleError: another try may do better.
            InputError: the endpoint refuses the request as it is.
        """
        try:
            # The client's own limit is for each read: a server that drips would never meet it.
            async with asyncio.timeout(self._options.timeout):
                raw = await self._client.chat.completions.with_raw_response.create(**body, extra_headers=self._headers)
        except (TimeoutError, self._library.APITimeoutError):
            raise TroubleError("timeout") from None
        except self._library.APIStatusError as error:
            raise self._trouble(error) from None
        except self._library.APIError:
            raise TroubleError("connection") from None
        return _read_reply(raw.content)

    def _trouble(self, error: Any) -> TroubleError | InputError:
        status = int(error.status_code)
        if status in _PASSING or status >= 500:
            return TroubleError(f"status_{status}", seconds_to_wait(error.response.headers))
        said = self._without_key(str(error.message))[:_MAX_QUOTED]
        remedies = {401: "give a key with --api_key_env or --api_key_file", 404: "check --base_url and --model"}
        what = f"the endpoint refuses the request ({said})"
        return InputError(what, path=self._options.base_url, remedy=remedies.get(status))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def seconds_to_wait(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for, a number or a date (RFC 9110, 10.2.3), if there is one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - (time.time() if now is None else now)
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None


def import_extra(name: str) -> ModuleType:
    """Import a package of the extra `generate`.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        what = f"making data needs the package {name}, which is not installed"
        raise InputError(what, remedy="pip install 'colossal-llama2[generate]'") from None


def _read_reply(raw: bytes) -> Reply:
    """Read a chat completion; what is none counts as a failure of the server, since no answer came."""
    try:
        fields = json.loads(raw)
        choice = fields["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        usage = fields.get("usage") or {}
        reason = choice.get("finish_reason") or "stop"
        if isinstance(content, str) and any("\ud800" <= character <= "\udfff" for character in content):
            content, reason = "", "not_text"  # half a surrogate pair, which no file of ours may hold
        return Reply(
            content=content if isinstance(content, str) else "",
            finish_reason=str(reason),
            refused=bool(refusal) or reason == "content_filter",
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise TroubleError("no_completion") from None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
