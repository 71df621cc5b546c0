"""The official client, as it comes: it lists, chats, streams, is told its mistakes, and its going away is noticed."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import openai
import pytest

MESSAGES: Any = [{"role": "user", "content": "the quick brown fox 你好"}]


@pytest.fixture
def client(served: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.base_url, api_key="any", max_retries=0) as one:
        yield one


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "rambler", "messages": MESSAGES, "max_tokens": 24, **fields})


def streamed(chunks: Any) -> tuple[str, Any, Any]:
    text, reason, usage = "", None, None
    for chunk in chunks:
        usage = chunk.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason, usage


def wait_for(true: Callable[[], bool]) -> None:
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come true within half a minute")


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["rambler"]
    assert client.models.retrieve("rambler").id == "rambler"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize("fields", [{"seed": 5}, {"temperature": 0}, {"seed": 1, "top_p": 0.5, "temperature": 1.5}])
def test_a_streams_text_is_the_whole_replys(served: Any, client: openai.OpenAI, fields: dict[str, Any]) -> None:
    whole = chat(client, **fields)
    text, reason, usage = streamed(chat(client, stream=True, stream_options={"include_usage": True}, **fields))
    assert len(text) > 5
    assert text == whole.choices[0].message.content
    assert reason == whole.choices[0].finish_reason == "length"
    assert usage == whole.usage
    assert whole.usage.completion_tokens == 24
    wait_for(lambda: served.figure("running") == 0)


def test_seeds_make_texts(client: openai.OpenAI) -> None:
    several = chat(client, n=3, seed=5).choices
    assert [choice.index for choice in several] == [0, 1, 2]
    assert len({choice.message.content for choice in several}) == 3
    assert several[0].message.content == chat(client, seed=5).choices[0].message.content
    assert chat(client, seed=6).choices[0].message.content != several[0].message.content
    assert chat(client).choices[0].message.content != chat(client).choices[0].message.content


def test_completions_of_several_prompts(client: openai.OpenAI) -> None:
    both = client.completions.create(model="rambler", prompt=["the quick", "你好"], n=2, temperature=0)
    texts = [choice.text for choice in both.choices]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    alone = client.completions.create(model="rambler", prompt="你好", temperature=0)
    assert alone.choices[0].text == texts[2]
    assert alone.usage is not None
    assert alone.usage.completion_tokens == 16
    chunks = list(client.completions.create(model="rambler", prompt="你好", temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == texts[2]


def test_stop_strings_end_a_reply_and_are_no_part_of_it(client: openai.OpenAI) -> None:
    text = chat(client, seed=5).choices[0].message.content
    stop = text[6:9]
    cut = chat(client, seed=5, stop=stop).choices[0]
    assert cut.message.content == text[: text.index(stop)]
    assert cut.finish_reason == "stop"
    assert streamed(chat(client, seed=5, stop=[stop], stream=True))[:2] == (cut.message.content, "stop")


def test_biases_and_penalties_change_the_text(client: openai.OpenAI) -> None:
    plain = chat(client, temperature=0).choices[0].message.content
    repeated = chat(client, temperature=0, logit_bias={"300": 100}).choices[0].message.content
    assert repeated != plain
    penalised = chat(client, temperature=0, logit_bias={"300": 50}, frequency_penalty=2, presence_penalty=2)
    assert penalised.choices[0].message.content not in (plain, repeated)


@pytest.mark.parametrize(
    ("fields", "error", "param", "code"),
    [
        ({"model": "other"}, openai.NotFoundError, "model", "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": ""}]}, openai.BadRequestError, "messages.0.role", "invalid_value"),
        ({"temperature": 9}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"temperature": "1"}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools", "unsupported_parameter"),
        ({"logprobs": True}, openai.BadRequestError, "logprobs", "unsupported_parameter"),
        ({"extra_body": {"beams": 4}}, openai.BadRequestError, "beams", "unknown_parameter"),
        ({"max_tokens": 1501}, openai.BadRequestError, "max_tokens", "invalid_value"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, openai.BadRequestError, "max_completion_tokens", None),
        ({"n": 5}, openai.BadRequestError, "n", "invalid_value"),
        ({"stop": ""}, openai.BadRequestError, "stop", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, openai.BadRequestError, "stream_options", "invalid_value"),
        ({"logit_bias": {"640": 1}}, openai.BadRequestError, "logit_bias", "invalid_value"),
        ({"logit_bias": {"9" * 5000: 1}}, openai.BadRequestError, "logit_bias", "invalid_value"),
        ({"messages": [{"role": "user", "content": None}]}, openai.BadRequestError, "messages.0.content", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            openai.BadRequestError,
            "messages.0.content.0.type",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "user", "content": "word " * 2000}]},
            openai.BadRequestError,
            "messages",
            "context_length_exceeded",
        ),
    ],
)
def test_mistakes_are_told_in_the_apis_form(
    client: openai.OpenAI, fields: dict[str, Any], error: type[openai.APIStatusError], param: str, code: str | None
) -> None:
    with pytest.raises(error) as caught:
        chat(client, **fields)
    assert caught.value.param == param  # type: ignore[attr-defined]
    assert code is None or caught.value.code == code  # type: ignore[attr-defined]
    assert caught.value.type == "invalid_request_error"  # type: ignore[attr-defined]


def test_neutral_values_of_what_is_not_supported_are_taken(client: openai.OpenAI) -> None:
    fields = {"tools": [], "logprobs": False, "response_format": {"type": "text"}, "user": "me", "stop": None}
    assert chat(client, seed=1, **fields).choices[0].message == chat(client, seed=1).choices[0].message


def test_a_long_conversation_is_cut_only_when_asked(client: openai.OpenAI) -> None:
    turns = [{"role": role, "content": "the quick brown fox " * 20} for role in ("user", "assistant") * 20]
    messages = [*turns, {"role": "user", "content": "the end"}]
    with pytest.raises(openai.BadRequestError, match="tokens"):
        chat(client, messages=messages)
    raw = client.chat.completions.with_raw_response.create(
        model="rambler",
        messages=messages,  # type: ignore[arg-type]
        max_tokens=4,
        extra_body={"truncation": "auto"},
    )
    dropped = int(raw.headers["x-dropped-messages"])
    assert dropped % 2 == 0
    assert 0 < dropped < 40
    kept = chat(client, messages=messages[dropped:], max_tokens=4)
    assert raw.parse().usage == kept.usage  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_text(served: Any, client: openai.OpenAI, stream: bool) -> None:
    before = served.figure("generated_tokens_total")
    if stream:
        chunks = chat(client, max_tokens=1500, stream=True, n=2)
        next(iter(chunks))
        chunks.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            chat(client.with_options(timeout=0.3), max_tokens=1500)
    wait_for(lambda: served.figure("running") == 0)
    assert served.figure("generated_tokens_total") - before < 1400, "nobody waits for the rest"
    assert served.figure("texts_total", reason="cancelled") > 0
    assert len(chat(client).choices[0].message.content) > 5


def test_beyond_its_queue_a_server_says_when_to_come_back(serve: Callable[..., AbstractContextManager[Any]]) -> None:
    with (
        serve(max_running=1, max_queue=1) as full,
        openai.OpenAI(base_url=full.base_url, api_key="x", max_retries=0) as client,
    ):
        running = chat(client, max_tokens=2000, stream=True)
        next(iter(running))
        waiting = threading.Thread(target=chat, args=[client], kwargs={"max_tokens": 1})
        waiting.start()
        wait_for(lambda: full.figure("queue_length") == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client, max_tokens=1)
        assert int(caught.value.response.headers["retry-after"]) > 0
        assert caught.value.code == "queue_full"
        running.close()
        waiting.join(10)
        assert full.figure("texts_total", reason="length") == 1, "what waited is written when the other has left"
        assert chat(client, max_tokens=1).choices


def test_models_stand_side_by_side(
    serve: Callable[..., AbstractContextManager[Any]],
    long_model_dir: Path,
    byte_level_tokenizer_dir: Path,
    tmp_path: Path,
) -> None:
    base = tmp_path / "base"  # as a base model is: without a chat template
    shutil.copytree(long_model_dir, base)
    (base / "tokenizer.model").unlink()
    for path in byte_level_tokenizer_dir.iterdir():
        shutil.copyfile(path, base / path.name)
    with (
        serve(models=[long_model_dir, base]) as both,
        openai.OpenAI(base_url=both.base_url, api_key="x", max_retries=0) as client,
    ):
        listed = {model.id: model.model_extra for model in client.models.list().data}
        assert [extra and extra["chat"] for extra in listed.values()] == [True, False]
        texts = {
            name: client.completions.create(model=name, prompt="the quick", temperature=0).choices[0].text
            for name in listed
        }
        assert len(set(texts.values())) == 2
        assert chat(client, max_tokens=3).model == "rambler"
        with pytest.raises(openai.BadRequestError) as caught:
            chat(client, model="base")
        assert (caught.value.code, caught.value.param) == ("no_chat_template", "model")


def test_without_the_key_nothing_is_answered(serve: Callable[..., AbstractContextManager[Any]]) -> None:
    with serve(keys=(b"first", b"second")) as guarded:
        for key in ("first", "second"):
            with openai.OpenAI(base_url=guarded.base_url, api_key=key, max_retries=0) as let_in:
                assert chat(let_in, max_tokens=1).choices
        for key in ("fir", "firs", "firstt", "FIRST", "none"):
            with openai.OpenAI(base_url=guarded.base_url, api_key=key, max_retries=0) as kept_out:
                with pytest.raises(openai.AuthenticationError):
                    chat(kept_out, max_tokens=1)
                with pytest.raises(openai.AuthenticationError):
                    kept_out.models.list()
        assert guarded.figure("texts_total") == 2
