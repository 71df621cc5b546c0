"""Settings of `tools/serve.py`, and the combinations that are refused before a model is read."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from colossal_llama2 import cli
from colossal_llama2.errors import InputError

KEY_VARIABLE: Final = "COLOSSAL_LLAMA2_API_KEY"


@dataclass(frozen=True)
class DoorOptions:
    """Where the server listens, and whom it answers."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every network, which needs an API key."""
    port: int = 8000
    """Port to listen on; 0 takes a free one and says which."""
    api_key_file: Path | None = None
    """File with the API keys that are let in, one a line (default: the environment's COLOSSAL_LLAMA2_API_KEY; without
    either no key is asked for)."""
    allow_no_key: bool = False
    """Listen beyond this machine without an API key."""
    allow_origin: tuple[str, ...] = ()
    """Web origins whose pages may call the server from a browser, such as https://chat.example.org (default: none but
    its own page)."""
    allow_host: tuple[str, ...] = ()
    """Names under which the server may be called besides localhost, as a proxy passes them on; checked where it listens
    on this machine alone."""


@dataclass(frozen=True)
class LimitOptions:
    """What one server, and one request, may take up."""

    max_running: int = 16
    """Texts of one model that are written at a time; a request for n choices counts n times."""
    max_queue: int = 64
    """Texts of one model that may wait for their turn; beyond it requests are answered with 429."""
    max_prompt_tokens: int | None = None
    """Longest prompt, in tokens (default: what the model's context holds)."""
    max_output_tokens: int = 4096
    """Most tokens that one request may ask for, for each of its choices."""
    max_seconds: float = 300.0
    """Most seconds for one request, waiting included; a text that is begun ends there with finish_reason `length`."""
    max_body_bytes: int = 2_000_000
    """Largest request body; beyond it requests are answered with 413."""
    max_connections: int = 512
    """Most open connections; further ones are closed at once."""
    idle_seconds: float = 15.0
    """Seconds that a client may take to send a whole request, and that a connection may be idle."""
    drain_seconds: float = 30.0
    """Seconds that running requests get to finish after SIGTERM or Ctrl-C."""
    prefill_tokens: int = 512
    """Tokens of new prompts that are read between two tokens of the running texts; more reads long prompts faster and
    makes the running texts wait longer."""


@dataclass(frozen=True)
class ServeSettings:
    """Serve models over HTTP by the OpenAI API, with a page to talk to them at the root."""

    model: tuple[Path, ...]
    """Model folders, their tokenizers inside; each is called by its folder's name."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 ..."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What computes; `vllm` is refused with the command to start instead, since vLLM brings the same API itself."""
    word_filter: Path | None = None
    """UTF-8 file, one word a line; what holds one, prompt or answer, ends with finish_reason `content_filter`."""
    temperature: float = 1.0
    """Temperature for requests that name none; 1 is the API's own."""
    top_p: float = 1.0
    """top_p for requests that name none, likewise."""
    door: DoorOptions = field(default_factory=DoorOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)


def check_settings(settings: ServeSettings) -> None:
    """Refuse what cannot work, before a model is read.

    Raises:
        InputError: naming the flag.
    """
    if not settings.model:
        raise InputError("no model", remedy="give --model DIR")
    if settings.engine == "vllm":
        raise InputError(
            "--engine vllm is not built in: vLLM has a server of its own for the same API",
            remedy=f"run: vllm serve {settings.model[0]}",
        )
    if not 0 <= settings.temperature <= 2 or not 0 < settings.top_p <= 1:
        raise InputError("--temperature is not from 0 to 2, or --top_p not above 0 and up to 1")
    if not 0 <= settings.door.port <= 65535:
        raise InputError(f"--port is {settings.door.port}", remedy="give 0 to 65535")
    limits = settings.limits
    for name in ("max_running", "max_output_tokens", "max_body_bytes", "max_connections", "prefill_tokens"):
        if getattr(limits, name) < 1:
            raise InputError(f"--{name} is {getattr(limits, name)}", remedy="give at least 1")
    for name in ("max_seconds", "idle_seconds"):
        if not getattr(limits, name) > 0:
            raise InputError(f"--{name} is {getattr(limits, name)}", remedy="give a positive number")
    if min(limits.max_queue, limits.drain_seconds) < 0:
        raise InputError("--max_queue and --drain_seconds begin at 0", remedy="give more")
    if limits.max_prompt_tokens is not None and limits.max_prompt_tokens < 1:
        raise InputError(f"--max_prompt_tokens is {limits.max_prompt_tokens}", remedy="give at least 1")
    for origin in settings.door.allow_origin:
        if origin == "*" or "://" not in origin or origin.rstrip("/") != origin:
            raise InputError(f"--allow_origin {origin!r} is no origin", remedy="write it as https://NAME[:PORT]")


def read_keys(door: DoorOptions) -> tuple[bytes, ...]:
    """Return the API keys that are let in; none where none is asked for. A complaint never quotes them.

    Raises:
        InputError: a key cannot be read or sent, or none is there though the server listens beyond this machine.
    """
    if door.api_key_file is not None:
        keys, where = _lines(door.api_key_file), str(door.api_key_file)
    else:
        keys, where = [os.environ.get(KEY_VARIABLE, "").strip()], f"the environment variable {KEY_VARIABLE}"
        if KEY_VARIABLE not in os.environ:
            keys = []
    if (door.api_key_file is not None and not keys) or any(
        not key or any(not "!" <= character <= "~" for character in key) for key in keys
    ):
        raise InputError(f"{where} holds no API key", remedy="put one there, of visible ASCII characters on one line")
    if not keys and not is_loopback(door.host):
        if not door.allow_no_key:
            raise InputError(
                f"--host {door.host} would let everyone in without a key",
                remedy=f"give --api_key_file or {KEY_VARIABLE}, or --allow_no_key to mean it",
            )
        cli.warn(f"listening on {door.host} without an API key: whoever reaches this port can use the models")
    return tuple(key.encode() for key in keys)


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None
    except UnicodeDecodeError:
        raise InputError("holds no API key", path=path) from None
    return [line.strip() for line in text.splitlines() if line.strip()]
