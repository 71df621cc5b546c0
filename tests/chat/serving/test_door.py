"""Who is let in, and what the wire is answered that is no good request."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.client import HTTPConnection
from typing import Any

import pytest

CHAT = {"model": "rambler", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


def call(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, raw, {"Content-Type": "application/json", **named})
    response = connection.getresponse()
    answer = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    connection.close()
    return answer


def error_of(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    fields = json.loads(answer[2])
    assert list(fields) == ["error"]
    assert set(fields["error"]) == {"message", "type", "param", "code"}
    return answer[0], fields["error"]["code"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]", ""])
def test_other_names_do_not_lead_here(served: Any, host: str) -> None:
    assert error_of(call(served.port, "GET", "/v1/models", Host=host)) == (403, "unknown_host")
    assert call(served.port, "GET", "/", Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1:8000", "[::1]:8000"])
def test_names_of_this_machine_do(served: Any, host: str) -> None:
    assert call(served.port, "GET", "/v1/models", Host=host)[0] == 200


def test_pages_of_other_origins_can_do_nothing(served: Any) -> None:
    here = f"http://127.0.0.1:{served.port}"
    assert call(served.port, "POST", "/v1/chat/completions", CHAT, Origin=here)[0] == 200
    for origin in ("https://evil.example", "null", "", "http://[x]", f"http://127.0.0.1:{served.port + 1}"):
        answer = call(served.port, "POST", "/v1/chat/completions", CHAT, Origin=origin)
        assert error_of(answer) == (403, "unknown_origin")
        assert "access-control-allow-origin" not in call(served.port, "GET", "/v1/models", Origin=origin)[1]
        assert "access-control-allow-origin" not in call(served.port, "OPTIONS", "/v1/models", Origin=origin)[1]
    # What a browser sends without asking first is not taken, whatever page it comes from.
    answer = call(served.port, "POST", "/v1/chat/completions", CHAT, Content_Type="text/plain")
    assert error_of(answer) == (415, "unsupported_media_type")


def test_allowed_origins_may_call_and_read(serve: Callable[..., AbstractContextManager[Any]]) -> None:
    friend = "https://chat.example.org"
    with serve(keys=(b"key",), allow_origin=(friend,)) as guarded:
        status, headers, _ = call(
            guarded.port, "OPTIONS", "/v1/chat/completions", Origin=friend, Access_Control_Request_Headers="x-a"
        )
        assert (status, headers["access-control-allow-headers"]) == (204, "x-a")
        named = {"Origin": friend, "Authorization": "Bearer key"}
        status, headers, _ = call(guarded.port, "POST", "/v1/chat/completions", CHAT, **named)
        assert (status, headers["access-control-allow-origin"]) == (200, friend)
        assert "X-Dropped-Messages" in headers["access-control-expose-headers"]
        # Without a key only the page and the health are answered, and the answer says no more than that.
        for path in ("/v1/models", "/v1/models/rambler", "/metrics", "/v1/nothing", "/docs", "/openapi.json"):
            status, headers, _ = answer = call(guarded.port, "GET", path)
            assert error_of(answer) == (401, "invalid_api_key")
            assert headers["www-authenticate"] == "Bearer"
        assert json.loads(call(guarded.port, "GET", "/health")[2]) == {"status": "ok"}
        for scheme in ("key", "Basic key", "Bearer", "Bearer kéy"):
            answer = call(guarded.port, "POST", "/v1/chat/completions", CHAT, Authorization=scheme)
            assert error_of(answer) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b'{"model": "\xff"}', 400, "invalid_json"),
        (b'{"model": NaN}', 400, "invalid_json"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400, "invalid_json"),
        (b'{"model": "rambler"}', 400, "missing_required_parameter"),
        (b'{"model": "rambler", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "invalid_json"),
        (b"x" * 100_001, 413, "request_too_large"),
        (b"x" * 1_500_000, 413, "request_too_large"),
        (b"x" * 3_000_000, 413, "request_too_large"),
    ],
)
def test_bodies_that_are_no_requests(served: Any, body: bytes, status: int, code: str) -> None:
    try:
        answer = call(served.port, "POST", "/v1/chat/completions", body)
    except (BrokenPipeError, ConnectionResetError):
        assert len(body) > 16 * 100_000, "what is far too large may be cut off"
    else:
        assert error_of(answer) == (status, code)
    assert call(served.port, "POST", "/v1/chat/completions", CHAT)[0] == 200


def test_paths_and_methods_that_are_not_there(served: Any) -> None:
    assert error_of(call(served.port, "GET", "/v1/nothing")) == (404, "not_found")
    assert error_of(call(served.port, "GET", "/../../etc/passwd")) == (404, "not_found")
    assert call(served.port, "GET", "/v1/chat/completions")[0] == 405
    assert call(served.port, "DELETE", "/v1/models")[0] == 405


def raw(port: int, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        received = b""
        while more := connection.recv(65536):
            received += more
        return received


def test_health_answers_a_question_for_the_head_alone(served: Any) -> None:
    assert call(served.port, "HEAD", "/health")[::2] == (200, b"")


def test_what_is_no_http_is_answered_as_a_bad_request(served: Any) -> None:
    for sent in (
        b"\x16\x03\x01\x02\x00\x01\x00\xff\xff\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a" * 70_000,
    ):
        head, _, body = raw(served.port, sent).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(body)["error"]["code"] == "invalid_http"


def test_silence_and_dripping_are_cut_off(serve: Callable[..., AbstractContextManager[Any]]) -> None:
    with serve(idle_seconds=0.5) as impatient:
        assert raw(impatient.port, b"GET / HTTP/1.1\r\nHost:") == b""
        assert raw(impatient.port, b"") == b""
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        assert b"request_timeout" in raw(impatient.port, head + b"Content-Length: 9\r\n\r\n{")


def test_beyond_their_number_connections_are_closed(serve: Callable[..., AbstractContextManager[Any]]) -> None:
    with serve(max_connections=5) as small:
        many = [socket.create_connection(("127.0.0.1", small.port), timeout=20) for _ in range(5)]
        assert raw_or_reset(small.port) == b"", "the sixth is closed at once"
        for connection in many:
            connection.close()


def raw_or_reset(port: int) -> bytes:
    try:
        return raw(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    except ConnectionResetError:
        return b""


def test_the_page_comes_with_its_policy(served: Any) -> None:
    status, headers, body = call(served.port, "GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"<html" in body
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert call(served.port, "GET", "/index.html")[2] == body
    script = call(served.port, "GET", "/main.js")
    assert script[1]["content-type"] == "text/javascript; charset=utf-8"


def test_ending_lets_what_runs_finish(serve: Callable[..., AbstractContextManager[Any]]) -> None:
    with serve() as ending:
        connection = HTTPConnection("127.0.0.1", ending.port, timeout=20)
        # So many that they are still being written when the server has been asked twice.
        body = json.dumps({**CHAT, "max_tokens": 600, "stream": True})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        first = response.readline()
        ending.end()
        assert any(call(ending.port, "GET", "/health")[0] == 503 for _ in range(100))
        assert error_of(call(ending.port, "POST", "/v1/chat/completions", CHAT)) == (503, "shutting_down")
        rest = response.read()
        assert first.startswith(b"data: {")
        assert rest.endswith(b"data: [DONE]\n\n")
        ending.thread.join(10)
        assert not ending.thread.is_alive()


def test_what_does_not_finish_in_time_is_told(serve: Callable[..., AbstractContextManager[Any]]) -> None:
    with serve(drain_seconds=0.1) as ending:
        connection = HTTPConnection("127.0.0.1", ending.port, timeout=20)
        body = json.dumps({**CHAT, "max_tokens": 2000, "stream": True})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.readline()
        ending.end()
        last = response.read().strip().rpartition(b"data: ")[2]
        assert json.loads(last)["error"]["code"] == "shutting_down"


def test_time_ends_texts_and_waiting(serve: Callable[..., AbstractContextManager[Any]]) -> None:
    with serve(max_seconds=0.5, max_running=1) as brief:
        status, _, body = call(brief.port, "POST", "/v1/chat/completions", {**CHAT, "max_tokens": 2000})
        choice = json.loads(body)["choices"][0]
        assert (status, choice["finish_reason"]) == (200, "length")
        assert choice["message"]["content"]
        assert brief.figure("texts_total", reason="timed_out") == 1


def test_filtered_words_end_prompts_and_answers(serve: Callable[..., AbstractContextManager[Any]], served: Any) -> None:
    from colossal_llama2.chat.serving.word_filter import WordFilter

    wanted = {**CHAT, "max_tokens": 30, "temperature": 0}
    text = json.loads(call(served.port, "POST", "/v1/chat/completions", wanted)[2])["choices"][0]["message"]["content"]
    word = max(text.split(), key=len)
    place = text.index(word)
    assert place > 0, "the word does not begin the text"
    with serve(words=WordFilter([word, "secret"])) as filtered:
        choice = json.loads(call(filtered.port, "POST", "/v1/chat/completions", wanted)[2])["choices"][0]
        assert choice["finish_reason"] == "content_filter"
        assert choice["message"]["content"] == text[:place]
        assert choice["message"]["refusal"]
        asked = {**CHAT, "messages": [{"role": "user", "content": "the SECRET, please"}]}
        for body in (asked, {**asked, "stream": True}):
            answer = call(filtered.port, "POST", "/v1/chat/completions", body)[2]
            assert b'"finish_reason":"content_filter"' in answer
            assert b'"content":""' in answer
        assert filtered.figure("prompt_tokens_total") < 50, "what was asked was not read"
