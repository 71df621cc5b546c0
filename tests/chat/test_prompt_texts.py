"""The package's words have every section and place they need, and a file that lacks one is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from colossal_llama2.chat.prompt_texts import PROMPTS_DIR, MakingKind, load_prompts
from colossal_llama2.errors import InputError


@pytest.mark.parametrize("kind", get_args(MakingKind))
@pytest.mark.parametrize(
    ("language", "chinese"), [("English", False), ("Swahili", False), ("中文", True), ("Chinese", True)]
)
def test_the_packages_words(kind: MakingKind, language: str, chinese: bool) -> None:
    prompts = load_prompts(kind, language, None)
    assert (prompts.chinese, prompts.language) == (chinese, "中文" if chinese else language)
    assert any("\u4e00" <= character <= "\u9fff" for character in prompts.text) == chinese
    assert any("{language}" in text for text in prompts.sections.values())
    assert {path.name for path in PROMPTS_DIR.iterdir()} >= {f"{kind}.en.txt", f"{kind}.zh.txt"}


def test_places_are_filled_once(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text('=== generate ===\nShow {examples}: {"a": 1} {count} {not a place}\n', encoding="utf-8")
    filled = load_prompts("prompts", "English", path).fill("generate", examples="{count}", count=3, language="x")
    assert filled == 'Show {count}: {"a": 1} 3 {not a place}'


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "has no section generate"),
        ("=== generate ===\n", "has no section generate"),
        ("words\n=== generate ===\n{examples} {count}", r":1: stands before"),
        ("=== generate ===\n{examples}", r"lacks \{count\}"),
        ("=== generate ===\n{examples} {count} {topic}", r"has \{topic\}, which nothing fills"),
        ("=== judge ===\n", r":1: --kind prompts has no section judge; it has generate"),
        ("=== generate ===\n{examples} {count}\n=== generate ===\n", r":3: .*twice"),
    ],
)
def test_words_that_cannot_be_used(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "words.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=what):
        load_prompts("prompts", "English", path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_prompts("prompts", "English", tmp_path / "none")
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        load_prompts("prompts", "English", tmp_path / "latin")
