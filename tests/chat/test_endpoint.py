"""One request over a real connection: what is sent, what comes back, and what every kind of trouble is called."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from colossal_llama2.chat.answer_journal import Reply
from colossal_llama2.chat.endpoint import (
    Endpoint,
    EndpointOptions,
    TroubleError,
    check_endpoint,
    import_extra,
    read_key,
    seconds_to_wait,
)
from colossal_llama2.errors import InputError

if TYPE_CHECKING:
    from tests.chat.conftest import FakeEndpoint

KEY = "sk-very-secret-0123456789"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "seed": 3}


def send(options: EndpointOptions, key: str | None = None) -> Reply:
    async def once() -> Reply:
        endpoint = Endpoint(options, key)
        try:
            return await endpoint.send(BODY)
        finally:
            await endpoint.close()

    return asyncio.run(once())


def test_an_answer(endpoint: FakeEndpoint) -> None:
    endpoint.say = lambda body: "Nice."
    reply = send(EndpointOptions(endpoint.base_url, "m"), KEY)
    assert reply == Reply("Nice.", "stop", False, 2, 2)
    assert endpoint.seen == [BODY]
    assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"


def test_no_key_is_sent_unless_one_is_given(endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    send(EndpointOptions(endpoint.base_url, "m"), None)
    assert "authorization" not in endpoint.headers[0]
    assert KEY not in str(endpoint.headers)


@pytest.mark.parametrize(
    ("choice", "usage", "expected"),
    [
        ({"message": {"content": None}}, True, Reply("", "stop", False, 2, 3)),
        ({"message": {"content": "x"}, "finish_reason": "length"}, False, Reply("x", "length", False, None, None)),
        ({"message": {"content": None, "refusal": "no"}}, False, Reply("", "stop", True)),
        ({"message": {"content": "x"}, "finish_reason": "content_filter"}, False, Reply("x", "content_filter", True)),
        ({"message": {"content": "half \ud83d"}}, False, Reply("", "not_text")),
        ({"message": {"content": ["parts"]}, "finish_reason": None}, False, Reply("", "stop")),
    ],
)
def test_answers_that_are_not_plain(
    endpoint: FakeEndpoint, choice: dict[str, Any], usage: bool, expected: Reply
) -> None:
    endpoint.say = lambda body: "8 letters"
    endpoint.choice, endpoint.usage = choice, usage
    assert send(EndpointOptions(endpoint.base_url, "m")) == expected


@pytest.mark.parametrize(
    ("made", "reason", "wait"),
    [
        ({"status": 429, "headers": {"Retry-After": "7"}}, "status_429", 7.0),
        ({"status": 503}, "status_503", None),
        ({"status": 500, "raw": b"<html>"}, "status_500", None),
        ({"status": 408}, "status_408", None),
        ({"hang_up": True}, "connection", None),
        ({"raw": b"not json"}, "no_completion", None),
        ({"raw": b"[" * 100_000}, "no_completion", None),
        ({"raw": b'{"choices": []}'}, "no_completion", None),
        ({"raw": b"null"}, "no_completion", None),
        ({"raw": b"<html></html>", "headers": {"Content-Type": "text/html"}}, "no_completion", None),
        ({"raw": b"short", "headers": {"Content-Length": "1000"}, "seconds": 0}, "timeout", None),
        ({"seconds": 3.0}, "timeout", None),
    ],
)
def test_trouble_has_a_name(endpoint: FakeEndpoint, made: Any, reason: str, wait: float | None) -> None:
    endpoint.trouble = lambda body, before: made
    with pytest.raises(TroubleError) as caught:
        send(EndpointOptions(endpoint.base_url, "m", timeout=1.0))
    assert (caught.value.reason, caught.value.retry_after) == (reason, wait)
    assert len(endpoint.seen) == 1, "the client does not try again by itself"


def test_nobody_there() -> None:
    with pytest.raises(TroubleError, match="connection"):
        send(EndpointOptions("http://127.0.0.1:9/v1", "m", timeout=5.0))


@pytest.mark.parametrize(
    ("status", "remedy"), [(400, "wrong"), (401, "--api_key_env"), (403, "wrong"), (404, "--model")]
)
def test_a_mistake_is_said_in_one_line_without_the_key(endpoint: FakeEndpoint, status: int, remedy: str) -> None:
    raw = json.dumps({"error": {"message": f"Key {KEY}\nis\nwrong", "code": "x"}}).encode()
    endpoint.trouble = lambda body, before: {"status": status, "raw": raw}
    with pytest.raises(InputError, match=remedy) as caught:
        send(EndpointOptions(endpoint.base_url, "m"), KEY)
    assert "wrong" in str(caught.value)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EndpointOptions("https://host/v1", "m")
    assert read_key(options) is None
    path = tmp_path / "key"
    path.write_text(f"\ufeff{KEY}\r\n", encoding="utf-8")
    assert read_key(EndpointOptions("https://host/v1", "m", api_key_file=path)) == KEY
    monkeypatch.setenv("SOME_KEY", f" {KEY} ")
    assert read_key(EndpointOptions("https://host/v1", "m", api_key_env="SOME_KEY")) == KEY


@pytest.mark.parametrize("content", ["", " \n", f"{KEY}\n{KEY}", f"{KEY} x", "schlüssel"])
def test_a_key_that_is_none_is_refused_and_not_quoted(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="holds no API key") as caught:
        read_key(EndpointOptions("https://host/v1", "m", api_key_file=path))
    assert KEY not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_key(EndpointOptions("https://host/v1", "m", api_key_file=tmp_path / "none"))
    with pytest.raises(InputError, match="UNSET_KEY holds no API key"):
        read_key(EndpointOptions("https://host/v1", "m", api_key_env="UNSET_KEY"))


@pytest.mark.parametrize(
    ("url", "warned"), [("http://far/v1", True), ("https://far/v1", False), ("http://[::1]:80/v1", False)]
)
def test_a_key_without_encryption_is_warned_of(
    url: str, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    read_key(EndpointOptions(url, "m", api_key_env="SOME_KEY"))
    assert ("without encryption" in capsys.readouterr().err) == warned


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (EndpointOptions("localhost:8000", "m"), "no http address"),
        (EndpointOptions("ftp://host/v1", "m"), "no http address"),
        (EndpointOptions(f"https://user:{KEY}@host/v1", "m"), "more than an address"),
        (EndpointOptions(f"https://host/v1?key={KEY}", "m"), "more than an address"),
        (EndpointOptions("https://host/v1", "m", max_tokens=0), "must be positive"),
        (EndpointOptions("https://host/v1", "m", timeout=0.0), "must be positive"),
        (EndpointOptions("https://host/v1", "m", api_key_env="A", api_key_file=Path("b")), "two API keys"),
    ],
)
def test_options_that_cannot_work_are_refused(options: EndpointOptions, what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        check_endpoint(options)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-4", 0.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
        ("soon", None),
        ("inf", None),
        ("nan", None),
    ],
)
def test_retry_after(value: str, expected: float | None) -> None:
    assert seconds_to_wait({"retry-after": value}, now=60.0) == expected
    assert seconds_to_wait({}) is None


def test_a_package_that_is_missing_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"needs the package openai.*colossal-llama2\[generate\]"):
        import_extra("openai")
