"""A person asks, reads, stops, asks again and comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest


def test_an_answer_is_shown_while_it_comes_in(server: Any, chat: Any, answer: type[Any]) -> None:
    gate = threading.Event()
    server.answers = [answer(["Good ", "morning", "."], gate=gate, gate_at=2)]
    chat.ask("Hello?", wait=False)
    chat.sees("Good morning")
    assert chat.page.get_attribute(".answer", "aria-busy") == "true"
    gate.set()
    chat.wait()
    assert chat.answers() == ["Good morning."]
    assert chat.page.get_attribute(".answer", "aria-busy") == "false"


def test_stop_keeps_what_has_come_and_hangs_up(server: Any, chat: Any, answer: type[Any]) -> None:
    server.answers = [answer(["The first half", "never"], gate=threading.Event())]
    chat.ask("Tell me everything", wait=False)
    chat.sees("The first half")
    chat.page.click("#composer button")
    chat.wait()
    assert chat.answers() == ["The first half"]
    assert chat.texts(".answer .note") == ["Stopped."]
    assert server.hung_up.wait(20)
    chat.ask("And then?")
    assert [message["content"] for message in server.requests[-1]["messages"]] == [
        *("Tell me everything", "The first half", "And then?"),
    ]


def test_the_second_question_is_sent_with_all_that_was_said(server: Any, chat: Any, answer: type[Any]) -> None:
    server.answers = [answer(["**One**"]), answer(["Two"])]
    chat.ask("First?")
    chat.ask("Second?")
    assert chat.answers() == ["One", "Two"]
    assert server.requests[1] == {
        "model": "adapted-7b",
        "messages": [
            {"role": "user", "content": "First?"},
            {"role": "assistant", "content": "**One**"},
            {"role": "user", "content": "Second?"},
        ],
        "truncation": "auto",
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_reload_keeps_the_conversation_and_it_goes_on(server: Any, chat: Any) -> None:
    chat.ask("Do you remember?")
    chat.reload()
    assert chat.questions() == ["Do you remember?"]
    assert chat.answers() == ["adapted-7b heard: Do you remember?"]
    assert chat.titles() == ["Do you remember?"]
    chat.ask("Still?")
    assert len(server.requests[-1]["messages"]) == 3


@pytest.mark.long
def test_a_reload_in_the_middle_of_an_answer_keeps_its_beginning(server: Any, chat: Any, answer: type[Any]) -> None:
    server.answers = [answer(["A beginning", "never"], gate=threading.Event())]
    chat.ask("Go on", wait=False)
    chat.sees("A beginning")
    chat.wait_for_kept("A beginning")
    chat.reload()
    assert chat.answers() == ["A beginning"]
    assert chat.texts(".answer .trouble p") == ["The page was closed before the answer was complete."]
    chat.page.get_by_role("button", name="Try again").click()
    chat.sees("adapted-7b heard: Go on")
    assert len(chat.answers()) == 1


def test_answering_again_replaces_the_last_answer(server: Any, chat: Any, answer: type[Any]) -> None:
    server.answers = [answer(["One"]), answer(["Two"]), answer(["Another two"])]
    chat.ask("First?")
    chat.ask("Second?")
    assert chat.page.get_by_role("button", name="Answer again").count() == 1, "only the last answer can be asked again"
    chat.page.get_by_role("button", name="Answer again").click()
    chat.sees("Another two")
    assert chat.answers() == ["One", "Another two"]
    assert server.requests[2]["messages"] == server.requests[1]["messages"]


@pytest.mark.long
def test_the_last_question_can_be_asked_in_other_words(server: Any, chat: Any) -> None:
    chat.ask("Waht?")
    chat.page.hover(".question")
    chat.page.get_by_role("button", name="Edit question").click()
    field = chat.page.get_by_role("textbox", name="Edit question")
    assert field.input_value() == "Waht?"
    field.fill("What?")
    field.press("Enter")
    chat.sees("adapted-7b heard: What?")
    assert chat.questions() == ["What?"]
    assert [len(request["messages"]) for request in server.requests] == [1, 1]


def test_conversations_are_renamed_opened_and_deleted(server: Any, chat: Any) -> None:
    chat.ask("About rivers")
    chat.page.get_by_role("button", name="New chat", exact=True).click()
    chat.ask("About hills")
    assert chat.titles() == ["About hills", "About rivers"]
    chat.page.get_by_role("button", name="Rename “About hills”").click()
    chat.page.keyboard.type("Mountains")
    chat.page.keyboard.press("Enter")
    chat.page.get_by_role("heading", name="Mountains").wait_for()
    chat.page.get_by_role("button", name="About rivers", exact=True).click()
    chat.sees("adapted-7b heard: About rivers")
    chat.page.get_by_role("button", name="Delete “About rivers”").click()
    chat.page.get_by_role("button", name="Cancel").click()
    assert len(chat.titles()) == 2
    chat.page.get_by_role("button", name="Delete “About rivers”").click()
    chat.page.locator("#confirm").get_by_role("button", name="Delete", exact=True).click()
    chat.page.wait_for_function("() => document.querySelectorAll('#conversations .title').length === 1")
    chat.reload()
    assert chat.titles() == ["Mountains"]


@pytest.mark.long
def test_an_answer_goes_on_while_another_conversation_is_read(server: Any, chat: Any, answer: type[Any]) -> None:
    gate = threading.Event()
    chat.ask("Short")
    chat.page.get_by_role("button", name="New chat", exact=True).click()
    server.answers = [answer(["Slow ", "but sure"], gate=gate)]
    chat.ask("Long", wait=False)
    chat.sees("Slow")
    chat.page.get_by_role("button", name="Short", exact=True).click()
    chat.sees("adapted-7b heard: Short")
    assert chat.page.locator("#composer button").get_attribute("data-shows") == "send"
    gate.set()
    chat.page.locator(".busy-dot").wait_for(state="detached")
    chat.page.get_by_role("button", name="Long", exact=True).click()
    chat.sees("Slow but sure")


def test_settings_are_sent_and_kept_but_the_key_leaves_with_the_tab(server: Any, chat: Any) -> None:
    chat.page.get_by_role("button", name="Settings").click()
    for label, value in {
        "System prompt": "Be brief.",
        "Temperature": "0.3",
        "Top p": "0.9",
        "Tokens at most": "64",
        "Seed": "7",
        "Key": "sesame",
    }.items():
        chat.page.get_by_label(label, exact=True).fill(value)
    chat.page.get_by_role("button", name="Save").click()
    server.key = "sesame"
    chat.reload()
    chat.ask("Hi")
    [request] = server.requests
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {name: request[name] for name in ("temperature", "top_p", "max_tokens", "seed")} == {
        "temperature": 0.3,
        "top_p": 0.9,
        "max_tokens": 64,
        "seed": 7,
    }
    assert "sesame" not in chat.page.evaluate("JSON.stringify({...localStorage})")
    assert "sesame" in chat.page.evaluate("JSON.stringify({...sessionStorage})")


@pytest.mark.long
def test_a_setting_that_is_no_number_is_refused_beside_its_field(chat: Any) -> None:
    chat.page.get_by_role("button", name="Settings").click()
    chat.page.get_by_label("Temperature", exact=True).fill("hot")
    chat.page.get_by_role("button", name="Save").click()
    assert chat.page.locator("#temperature-problem").inner_text() == "A number from 0 to 2, or nothing."
    assert chat.page.locator("#temperature").get_attribute("aria-invalid") == "true"
    assert chat.page.evaluate("document.activeElement.id") == "temperature"


@pytest.mark.long
def test_the_chosen_model_is_asked(server: Any, open_page: Callable[..., Any]) -> None:
    server.models = ["base-7b", "aligned-7b"]
    chat = open_page()
    chat.page.get_by_label("Model").select_option("aligned-7b")
    chat.ask("Who are you?")
    assert server.requests[0]["model"] == "aligned-7b"
    chat.page.get_by_role("button", name="New chat", exact=True).click()
    assert chat.page.get_by_label("Model").input_value() == "aligned-7b"


@pytest.mark.long
def test_messages_and_code_are_copied(server: Any, chat: Any, answer: type[Any]) -> None:
    server.answers = [answer(["Run **this**:\n\n```sh\nls -l\n\tcd\n```\n"])]
    chat.ask("How?")
    chat.page.locator(".copy-code").click()
    chat.page.get_by_role("button", name="Copied").wait_for()
    assert chat.page.evaluate("navigator.clipboard.readText()") == "ls -l\n\tcd"
    chat.page.locator(".answer").get_by_role("button", name="Copy message").click()
    chat.page.wait_for_function("() => document.getElementById('announcements').lastChild.innerText === 'Copied'")
    assert chat.page.evaluate("navigator.clipboard.readText()") == "Run **this**:\n\n```sh\nls -l\n\tcd\n```\n"


def test_the_page_stays_where_the_reader_has_scrolled_to(server: Any, chat: Any, answer: type[Any]) -> None:
    gate = threading.Event()
    lines = [f"Line {number}\n\n" for number in range(120)]
    server.answers = [answer(["".join(lines), "The end.\n\n", *lines], gate=gate)]
    chat.ask("Long?", wait=False)
    chat.sees("Line 119")
    place = "document.querySelector('.scroller').scrollTop"
    rest = f"{place.replace('scrollTop', 'scrollHeight')} - {place} - {place.replace('scrollTop', 'clientHeight')}"
    assert chat.page.evaluate(rest) < 48, "the end is followed"
    chat.page.evaluate("document.querySelector('.scroller').scrollTop = 300")
    chat.page.get_by_role("button", name="To the latest").wait_for()
    gate.set()
    chat.sees("The end.")
    chat.wait()
    assert chat.page.evaluate(place) == 300
    chat.page.get_by_role("button", name="To the latest").click()
    assert chat.page.evaluate(rest) < 48


@pytest.mark.long
def test_two_tabs_show_the_same_conversation(server: Any, chat: Any, answer: type[Any]) -> None:
    chat.ask("From the first tab")
    other = chat.page.context.new_page()
    other.goto(server.url)
    other.get_by_role("button", name="From the first tab", exact=True).click()
    server.answers = [answer(["Half"], finish=None, gate=(gate := threading.Event()), gate_at=0)]
    chat.ask("In between", wait=False)
    other.locator(".answer .waiting").wait_for()
    gate.set()
    other.get_by_text("The connection was lost").first.wait_for()
    chat.ask("And once more")
    other.locator("#main").get_by_text("adapted-7b heard: And once more").wait_for()


@pytest.mark.long
def test_a_hundred_kilobytes_without_a_break_come_in_and_the_page_stays_usable(
    server: Any, chat: Any, answer: type[Any]
) -> None:
    word = "word **bold** "
    server.answers = [answer([word * 7] * 1000 + ["the end"])]
    chat.ask("Everything?", wait=False)
    chat.sees("word")
    typed = "typed while it comes in"
    chat.page.locator("#question").press_sequentially(typed)
    assert chat.page.input_value("#question") == typed
    chat.page.set_default_timeout(60_000)
    chat.wait()
    assert chat.answers()[0] == "word bold " * 7000 + "the end"
