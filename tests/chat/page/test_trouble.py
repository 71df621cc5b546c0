"""What the page says when something goes wrong, and that nothing is lost by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def test_a_server_that_wants_a_key_is_given_one_on_the_spot(server: Any, open_page: Callable[..., Any]) -> None:
    server.key = "sesame"
    chat = open_page()
    notice = chat.page.locator("#notices")
    assert "The server asks for a key." in notice.inner_text()
    notice.get_by_label("Key").fill("wrong")
    notice.get_by_role("button", name="Use this key").click()
    notice.get_by_text("The server does not accept this key.").wait_for()
    notice.get_by_label("Key").fill("sesame")
    notice.get_by_role("button", name="Use this key").click()
    chat.page.locator("#model").wait_for()
    assert notice.inner_text() == ""
    chat.ask("Open?")
    assert chat.answers() == ["adapted-7b heard: Open?"]


@pytest.mark.long
def test_a_key_that_is_refused_later_is_asked_for_below_the_question(server: Any, chat: Any) -> None:
    server.key = "sesame"
    chat.ask("Open?")
    assert chat.texts(".answer .trouble p")[0] == "The server asks for a key."
    chat.page.locator(".answer").get_by_label("Key").fill("sesame")
    chat.page.keyboard.press("Enter")
    chat.sees("adapted-7b heard: Open?")
    assert chat.questions() == ["Open?"]


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (429, {"Retry-After": "7"}, "The server is busy and asks to try again in 7 seconds."),
        pytest.param(429, {}, "The server is busy and asks to try again later.", marks=pytest.mark.long),
        pytest.param(400, {}, "The server refused the request: max_tokens is too large.", marks=pytest.mark.long),
        pytest.param(500, {}, "The server failed (500): max_tokens is too large.", marks=pytest.mark.long),
    ],
)
def test_an_error_is_said_in_words_and_the_question_can_be_asked_again(
    server: Any, chat: Any, answer: type[Any], status: int, headers: dict[str, str], words: str
) -> None:
    server.answers = [answer(status=status, message="max_tokens is too large.", headers=headers)]
    chat.ask("Please?")
    assert chat.texts(".answer .trouble p") == [words]
    chat.page.get_by_role("button", name="Try again").click()
    chat.sees("adapted-7b heard: Please?")
    assert chat.page.locator(".trouble").count() == 0


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (None, "The connection was lost before the answer was complete."),
        pytest.param(
            *('{"error": {"message": "out of memory", "code": 500}}', "The server failed (500): out of memory"),
            marks=pytest.mark.long,
        ),
        pytest.param(
            *("{torn", "The server sent something that is not an answer of a chat server: {torn"),
            marks=pytest.mark.long,
        ),
    ],
)
def test_an_answer_that_breaks_off_keeps_its_beginning(
    server: Any, chat: Any, answer: type[Any], event: str | None, words: str
) -> None:
    server.answers = [answer(["Half an answer"], finish=None, event=event)]
    chat.ask("Please?")
    assert chat.answers() == ["Half an answer"]
    assert chat.texts(".answer .trouble p") == [words]
    chat.reload()
    assert chat.texts(".answer .trouble p") == [words]
    chat.page.get_by_role("button", name="Try again").click()
    chat.sees("adapted-7b heard: Please?")
    assert len(server.requests[-1]["messages"]) == 1


@pytest.mark.long
def test_a_server_that_cannot_be_reached(server: Any, chat: Any) -> None:
    chat.page.route("**/v1/**", lambda route: route.abort())
    chat.ask("Anyone?")
    assert chat.texts(".answer .trouble p") == ["The server cannot be reached."]
    chat.page.unroute("**/v1/**")
    chat.page.get_by_role("button", name="Try again").click()
    chat.sees("adapted-7b heard: Anyone?")


@pytest.mark.long
def test_a_question_without_an_answer_is_left_out_and_the_page_says_so(
    server: Any, chat: Any, answer: type[Any]
) -> None:
    server.answers = [answer(status=500, message="no"), answer(["Yes"])]
    chat.ask("Lost?")
    chat.ask("Found?")
    assert [message["content"] for message in server.requests[1]["messages"]] == ["Found?"]
    assert chat.texts(".question .note") == ["This question got no answer and is left out of the next requests."]


@pytest.mark.long
def test_what_the_server_leaves_out_or_cuts_off_is_said(server: Any, chat: Any, answer: type[Any]) -> None:
    server.answers = [
        answer(["Short"], finish="length", headers={"X-Dropped-Messages": "4"}),
        answer(["Bad"], finish="content_filter"),
        answer([]),
    ]
    for question in ("One", "Two", "Three"):
        chat.ask(question)
    assert chat.texts(".answer .note") == [
        "The conversation is longer than the model can read: the server left out the oldest messages (4).",
        "The answer reached its limit of tokens.",
        "The server's word filter ended this answer.",
        "The model gave an empty answer.",
    ]


_FULL = """
const put = IDBObjectStore.prototype.put;
window.full = true;
IDBObjectStore.prototype.put = function (...values) {
  const request = put.apply(this, values);
  if (window.full && this.name === "conversations") {
    const { transaction } = this;
    Object.defineProperty(transaction, "error", { value: new DOMException("no room", "QuotaExceededError") });
    transaction.abort();
  }
  return request;
};
"""


@pytest.mark.long
def test_a_full_browser_is_told_about_and_the_talk_goes_on(open_page: Callable[..., Any]) -> None:
    chat = open_page(before=_FULL)
    chat.ask("Room?")
    assert "The browser has no room left" in chat.page.locator("#notices").inner_text()
    assert chat.answers() == ["adapted-7b heard: Room?"]
    chat.page.evaluate("window.full = false")
    chat.ask("Now?")
    chat.page.wait_for_function("() => document.getElementById('notices').innerText === ''")
    chat.reload()
    assert chat.questions() == ["Room?", "Now?"], "what was not kept at first is kept with the next saving"


_NOTHING_KEPT = """
const forbid = () => { throw new DOMException("storage is off", "SecurityError"); };
IDBFactory.prototype.open = forbid;
Storage.prototype.getItem = forbid;
Storage.prototype.setItem = forbid;
Storage.prototype.removeItem = forbid;
"""


@pytest.mark.long
def test_a_browser_that_keeps_nothing_still_talks(open_page: Callable[..., Any]) -> None:
    chat = open_page(before=_NOTHING_KEPT)
    assert "This browser keeps nothing for this page (storage is off)." in chat.page.locator("#notices").inner_text()
    chat.ask("Hello?")
    chat.page.get_by_role("button", name="New chat", exact=True).click()
    chat.page.get_by_role("button", name="Hello?", exact=True).click()
    assert chat.answers() == ["adapted-7b heard: Hello?"]


def test_settings_of_the_wrong_kind_count_as_none(server: Any, chat: Any) -> None:
    wrong = '{"system": 5, "temperature": "hot", "seed": null, "theme": null, "model": ["a"]}'
    chat.page.evaluate("(text) => localStorage.setItem('colossal-llama2-settings', text)", wrong)
    chat.page.reload()
    chat.page.locator("#model").wait_for()
    chat.ask("Still there?")
    assert chat.answers() == ["adapted-7b heard: Still there?"]
    assert "temperature" not in server.requests[-1]
