"""Two or three models side by side, each with a history of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def chat(server: Any, open_page: Callable[..., Any]) -> Any:
    server.models = ["base-7b", "adapted-7b", "aligned-7b"]
    chat = open_page()
    chat.page.get_by_role("button", name="Compare models").click()
    return chat


def _columns(chat: Any) -> list[list[str]]:
    columns = chat.page.locator(".column")
    return [columns.nth(index).locator(".markdown").all_inner_texts() for index in range(columns.count())]


def test_the_answers_come_in_side_by_side_and_the_histories_stay_apart(
    server: Any, chat: Any, answer: type[Any]
) -> None:
    gate = threading.Event()
    server.answers = [answer(["Begun", " and ended"], gate=gate), answer(["Begun", " and ended"], gate=gate)]
    chat.ask("First?", wait=False)
    chat.page.wait_for_function(
        "() => [...document.querySelectorAll('.markdown')].every((node) => node.innerText === 'Begun')"
    )
    assert len(server.requests) == 2, "both are asked before either has ended"
    gate.set()
    chat.wait()
    chat.ask("Second?")
    assert _columns(chat) == [
        ["Begun and ended", "base-7b heard: Second?"],
        ["Begun and ended", "adapted-7b heard: Second?"],
    ]
    by_model = {request["model"]: request["messages"] for request in server.requests[2:]}
    assert by_model.keys() == {"base-7b", "adapted-7b"}
    assert all([m["content"] for m in sent] == ["First?", "Begun and ended", "Second?"] for sent in by_model.values())
    chat.reload()
    assert [len(answers) for answers in _columns(chat)] == [2, 2]


@pytest.mark.long
def test_models_are_added_chosen_and_taken_away(server: Any, chat: Any) -> None:
    page = chat.page
    page.get_by_role("button", name="Add a model").click()
    assert page.get_by_role("button", name="Add a model").count() == 0, "three are the most"
    page.get_by_label("Model in column 1").select_option("aligned-7b")
    chosen = [page.get_by_label(f"Model in column {number}").input_value() for number in (1, 2, 3)]
    assert chosen == ["aligned-7b", "adapted-7b", "base-7b"], "two columns never have the same model"
    page.get_by_role("button", name="Remove column 2").click()
    chat.ask("Who?")
    assert _columns(chat) == [["aligned-7b heard: Who?"], ["base-7b heard: Who?"]]
    assert page.locator(".column-head select").count() == 0, "a history has one model"


@pytest.mark.long
def test_one_column_fails_and_is_asked_again_by_itself(server: Any, chat: Any, answer: type[Any]) -> None:
    server.answers = [answer(status=429, message="busy"), answer(["Fine"])]
    chat.ask("Well?")
    assert chat.page.locator(".trouble").count() == 1
    chat.page.get_by_role("button", name="Try again").click()
    chat.page.locator(".trouble").wait_for(state="detached")
    chat.wait()
    assert sorted(text for column in _columns(chat) for text in column)[0] == "Fine"
    assert len(server.requests) == 3


def test_a_base_model_goes_on_with_the_text(server: Any, chat: Any) -> None:
    server.without_template = ["base-7b"]
    chat.ask("Once upon a time")
    assert _columns(chat)[0] == ["base-7b heard: Once upon a time"]
    [request] = [request for request in server.requests if "prompt" in request]
    assert request["prompt"] == "Once upon a time"
    assert request["max_tokens"] > 16
    assert len(chat.texts(".note")) == 1
    assert "as plain text" in chat.texts(".note")[0]


@pytest.mark.long
def test_one_model_is_not_enough(server: Any, open_page: Callable[..., Any]) -> None:
    chat = open_page()
    chat.page.get_by_role("button", name="Compare models").click()
    assert "it offers 1" in chat.page.locator("#notices").inner_text()


@pytest.mark.long
def test_stop_stops_every_column(server: Any, chat: Any, answer: type[Any]) -> None:
    server.answers = [answer(["Half", "never"], gate=threading.Event()) for _ in range(2)]
    chat.ask("Well?", wait=False)
    chat.page.wait_for_function(
        "() => [...document.querySelectorAll('.markdown')].every((node) => node.innerText === 'Half')"
    )
    chat.page.keyboard.press("Escape")
    chat.wait()
    assert chat.texts(".answer .note") == ["Stopped.", "Stopped."]
