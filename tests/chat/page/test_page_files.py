"""The page's files by themselves: nothing from elsewhere, no way from text to HTML, every word in both languages."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colossal_llama2.chat

_PAGE = Path(colossal_llama2.chat.__file__).parent / "page"
_SCRIPTS = sorted(_PAGE.glob("*.js"))


def _texts(*patterns: str) -> str:
    files = [file for pattern in patterns for file in sorted(_PAGE.glob(pattern))]
    assert files
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def test_no_text_can_become_html_or_a_program() -> None:
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc|setHTML"
    assert not re.findall(rf"{ways}|\beval\b|new Function|import\(|setAttribute\(\"on", _texts("*.js"))


def test_the_html_has_nothing_that_the_content_policy_forbids() -> None:
    html = _texts("*.html")
    assert not re.findall(r"<style|\sstyle=|\son\w+=|javascript:", html)
    assert re.findall(r"<script[^>]*>(.*?)</script>", html) == ["", ""]


def test_nothing_is_loaded_from_elsewhere() -> None:
    addresses = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", _texts("*.html", "*.css", "*.svg"))
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"@import|url\(", _texts("*.css"))
    imported = re.findall(r"from \"([^\"]+)\"", _texts("*.js"))
    assert imported
    assert all((_PAGE / name).is_file() and name.startswith("./") for name in imported)


def test_an_installed_package_has_the_page() -> None:
    """Where the package is installed there is no pyproject.toml, and then the page being there is the proof."""
    assert (_PAGE / "index.html").is_file()
    project = Path(__file__).parents[3] / "pyproject.toml"
    assert "page/*" in tomllib.loads(project.read_text())["tool"]["setuptools"]["package-data"]["colossal_llama2.chat"]
    assert not [path for path in _PAGE.iterdir() if path.is_dir()], "the pattern reaches no folder in it"


def test_files_stay_short() -> None:
    assert {file.name for file in _PAGE.iterdir() if len(file.read_text(encoding="utf-8").splitlines()) > 300} == set()


def test_both_languages_say_the_same_and_no_word_is_missing_or_unused(modules: Callable[..., Any]) -> None:
    texts = modules("({ TEXTS }) => TEXTS", "texts.js")
    english, chinese = texts["en"], texts["zh"]
    assert english.keys() == chinese.keys()
    places = {key: sorted(re.findall(r"\{\w+\}", text)) for key, text in english.items()}
    assert places == {key: sorted(re.findall(r"\{\w+\}", text)) for key, text in chinese.items()}
    assert all(text.strip() for table in texts.values() for text in table.values())
    assert [key for key, text in chinese.items() if not re.search(r"[一-鿿]", text)] == [
        *("languageOther", "languageOtherLabel", "topP"),
    ]
    scripts = "\n".join(file.read_text(encoding="utf-8") for file in _SCRIPTS if file.name != "texts.js")
    html_keys = set(re.findall(r'data-(?:text|label|placeholder)="(\w+)"', _texts("*.html")))
    assert html_keys <= english.keys()
    called = set(re.findall(r"\bt\(\"(\w+)\"", scripts))
    assert called <= english.keys()
    quoted = set(re.findall(r"\"(\w+)\"", scripts))
    assert english.keys() - html_keys - quoted == set()
