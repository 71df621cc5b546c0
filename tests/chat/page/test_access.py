"""Whoever uses a keyboard, a screen reader, a phone, the dark or Chinese finds the same page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

# Every text that is seen: its contrast with what lies behind it, by the formula of WCAG 2. Returns those below AA.
_FAINT = r"""
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([red, green, blue]) => {
    const linear = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  let count = 0;
  for (const node of document.querySelectorAll("body *")) {
    const shows = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!shows && !node.matches("input, textarea, .icon")) continue;
    const seen = node.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!seen || node.closest(".unseen, .skip")) continue;
    const ratioOf = (colour) => {
      const [light, dark] = [luminance(rgba(colour)), luminance(behind(node))].sort((one, other) => other - one);
      return (light + 0.05) / (dark + 0.05);
    };
    const needed = node.matches(".icon") ? 3 : 4.5;
    const colours = [getComputedStyle(node).color];
    if (node.matches("input, textarea")) colours.push(getComputedStyle(node, "::placeholder").color);
    for (const colour of colours) {
      count += 1;
      const ratio = ratioOf(colour);
      if (ratio < needed) faint.push(`${node.localName}.${node.getAttribute("class")} ${ratio.toFixed(2)}`);
    }
  }
  return { faint, count };
}
"""
_EVERYTHING = (
    "# Title\n\nText with `code`, **bold** and a [link](https://x.org).\n\n> quote\n\n- item\n\n"
    "|a|b|\n|-|-|\n|1|2|\n\n```python\nx = 1\n```"
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(
    server: Any, open_page: Callable[..., Any], answer: type[Any], scheme: str
) -> None:
    chat = open_page(color_scheme=scheme)
    server.answers = [answer(status=401, message="no"), answer([_EVERYTHING], finish="length")]
    chat.ask("Trouble?")
    chat.ask("Everything?")
    result = chat.page.evaluate(_FAINT)
    assert result["faint"] == []
    assert result["count"] > 30
    background = chat.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (background == "rgb(26, 25, 24)") is (scheme == "dark")
    chat.page.get_by_role("button", name="Settings").click()
    chat.page.get_by_label("Seed", exact=True).fill("x")
    chat.page.get_by_role("button", name="Save").click()
    assert chat.page.evaluate(_FAINT)["faint"] == []


def test_the_keyboard_is_enough(server: Any, chat: Any, answer: type[Any]) -> None:
    page, press = chat.page, chat.page.keyboard.press
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("One line")
    press("Shift+Enter")
    page.keyboard.type("and another")
    gate = threading.Event()
    server.answers = [answer(["Half", "never"], gate=gate)]
    press("Enter")
    chat.sees("Half")
    assert server.requests[0]["messages"][0]["content"] == "One line\nand another"
    page.keyboard.type("too early")
    press("Enter")
    press("Escape")
    chat.wait()
    assert chat.texts(".answer .note") == ["Stopped."]
    assert len(server.requests) == 1, "Enter sends nothing while an answer is coming in"
    names = _walk(page, 12)
    assert names[:3] == ["Skip to the question", "New chat", "Compare models"]
    assert {"One line", "Rename “One line”", "Delete “One line”", "Settings", "Model", "Conversation"} <= set(names)
    page.evaluate("document.activeElement.blur()")
    page.locator(".skip").focus()
    press("Enter")
    page.wait_for_function("() => document.activeElement.id === 'question'")
    page.get_by_role("button", name="Delete “One line”").focus()
    press("Enter")
    press("Tab")
    assert page.evaluate("document.activeElement.closest('dialog') !== null"), "a dialog keeps the focus"
    press("Escape")
    assert page.evaluate("document.activeElement.ariaLabel") == "Delete “One line”", "and gives it back"


_FOCUSED = """
() => {
  const node = document.activeElement;
  const style = getComputedStyle(node.closest("form") ?? node);
  return [node.ariaLabel || node.innerText || node.id, style.outlineStyle !== "none" || style.boxShadow !== "none"];
}
"""


def _walk(page: Any, steps: int) -> list[str]:
    """Press Tab from the beginning of the page and note what is focused, each with a ring around it."""
    page.evaluate("document.activeElement.blur(); document.body.tabIndex = -1; document.body.focus()")
    names = []
    for _ in range(steps):
        page.keyboard.press("Tab")
        name, ring = page.evaluate(_FOCUSED)
        assert ring, f"no focus to be seen on {name}"
        names.append(name.strip())
    return names


def test_an_input_method_composes_with_enter_without_sending(server: Any, chat: Any) -> None:
    chat.page.fill("#question", "ni hao")
    press = "(code) => document.getElementById('question').dispatchEvent(new KeyboardEvent('keydown', code))"
    common = {"key": "Enter", "bubbles": True, "cancelable": True}
    chat.page.evaluate(press, {**common, "isComposing": True})
    chat.page.evaluate(press, {**common, "keyCode": 229})
    assert chat.questions() == []
    chat.page.evaluate(press, common)
    chat.sees("adapted-7b heard: ni hao")
    assert len(server.requests) == 1


def test_a_screen_reader_hears_answers_and_not_tokens(server: Any, chat: Any, answer: type[Any]) -> None:
    chat.page.evaluate(
        "(region) => new MutationObserver(() => (window.said ??= []).push(region.lastChild.innerText))"
        ".observe(region, { childList: true })",
        chat.page.query_selector("#announcements"),
    )
    server.answers = [answer(["A ", "few ", "tokens ", "more"], pause=0.05)]
    chat.ask("Well?")
    assert chat.page.evaluate("said") == ["adapted-7b is answering.", "Answer of adapted-7b: A few tokens more"]
    for role, name in (("navigation", "Conversations"), ("main", ""), ("region", "Conversation"), ("status", "")):
        assert chat.page.get_by_role(role, **({"name": name, "exact": True} if name else {})).count() >= 1, role
    assert chat.page.get_by_role("heading", level=1).count() == 1
    assert chat.page.get_by_role("heading", level=2).all_inner_texts() == ["You", "Answer: adapted-7b"]
    nameless = (
        "[...document.querySelectorAll('button, input, select, textarea')].filter((node) => node.checkVisibility()"
    )
    nameless += " && !(node.ariaLabel || node.innerText.trim() || node.labels?.length)).length"
    assert chat.page.evaluate(nameless) == 0


def test_language_and_light_are_the_browsers_until_others_are_chosen(
    server: Any, open_page: Callable[..., Any]
) -> None:
    chat = open_page(locale="zh-CN")
    assert chat.page.evaluate("document.documentElement.lang") == "zh-CN"
    chat.ask("你好")
    assert "词元" in chat.texts(".answer .meta")[0]
    words = "[...document.querySelectorAll('body *')].filter((n) => n.checkVisibility() && !n.children.length)"
    words += ".map((n) => n.innerText?.trim()).filter((text) => /^[A-Z][a-z]/.test(text))"
    assert chat.page.evaluate(words) == ["English"], "a word that was left in English"
    chat.page.get_by_role("button", name="Show this page in English").click()
    background = "getComputedStyle(document.documentElement).backgroundColor"
    light = chat.page.evaluate(background)
    chat.page.get_by_role("button", name="Switch between light and dark").click()
    dark = chat.page.evaluate(background)
    assert dark != light
    chat.reload()
    assert chat.page.evaluate(background) == dark
    assert chat.page.evaluate("document.documentElement.lang") == "en"
    assert chat.questions() == ["你好"]


def test_a_phone_shows_everything_without_scrolling_sideways(
    server: Any, open_page: Callable[..., Any], answer: type[Any]
) -> None:
    chat = open_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    server.answers = [answer([_EVERYTHING + "\n\n" + "long" * 100 + "\n\n```\n" + "wide " * 60 + "\n```"])]
    chat.ask("Everything?")
    assert chat.page.evaluate("document.documentElement.scrollWidth") == 360
    assert chat.page.evaluate("document.querySelector('.scroller').scrollWidth") <= 360
    assert not chat.page.get_by_role("button", name="New chat", exact=True).is_visible()
    chat.page.get_by_role("button", name="Show conversations").click()
    chat.page.get_by_role("button", name="New chat", exact=True).click()
    chat.sees("What would you like to ask?")
    chat.page.get_by_role("button", name="New chat", exact=True).wait_for(state="hidden")
    assert chat.page.evaluate("document.getElementById('main').inert") is False
