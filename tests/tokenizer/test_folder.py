"""A folder says the same thing whichever of its files says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.folder import copy_tokenizer_files, read_folder, with_chat_template


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.model").write_bytes(b"not looked into here")
    return tmp_path


def test_special_tokens_as_text_or_object_from_either_file(folder: Path) -> None:
    write(folder, "special_tokens_map.json", {"bos_token": {"content": "<s>"}, "eos_token": "</e>", "pad_token": "<p>"})
    write(
        folder, "tokenizer_config.json", {"eos_token": "</s>", "pad_token": None, "additional_special_tokens": ["[U]"]}
    )
    found = read_folder(folder)
    assert found.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<p>"}
    assert found.extra_special_tokens == ("[U]",)
    assert found.markers == {"<s>", "</s>", "<p>", "[U]"}


def test_added_tokens_from_three_places(folder: Path) -> None:
    write(folder, "tokenizer.json", {"added_tokens": [{"id": 7, "content": "<a>", "special": True, "lstrip": True}]})
    write(folder, "added_tokens.json", {"<b>": 8})
    write(folder, "tokenizer_config.json", {"added_tokens_decoder": {"9": {"content": "<c>", "special": False}}})
    added = read_folder(folder).added_tokens
    assert [(index, token.content, token.special, token.lstrip) for index, token in added.items()] == [
        (7, "<a>", True, True),
        (8, "<b>", False, False),
        (9, "<c>", False, False),
    ]


def test_bos_is_added_unless_the_settings_say_otherwise(folder: Path) -> None:
    assert read_folder(folder).adds("bos")
    assert not read_folder(folder).adds("eos")
    write(folder, "tokenizer_config.json", {"add_bos_token": False, "add_eos_token": True})
    assert not read_folder(folder).adds("bos")
    assert read_folder(folder).adds("eos")


def test_template_file_wins_over_the_settings(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"chat_template": "old"})
    assert read_folder(folder).chat_template == "old"
    (folder / "chat_template.jinja").write_text("new")
    assert read_folder(folder).chat_template == "new"


def test_copying_replaces_a_tokenizer_whole(folder: Path, tmp_path: Path) -> None:
    write(folder, "tokenizer_config.json", {})
    target = tmp_path / "target"
    target.mkdir()
    for name in ("tokenizer.json", "added_tokens.json", "config.json"):
        write(target, name, {})
    assert copy_tokenizer_files(folder, target) == ["tokenizer.model", "tokenizer_config.json"]
    assert {path.name for path in target.iterdir()} == {"tokenizer.model", "tokenizer_config.json", "config.json"}


@pytest.mark.parametrize("content", ["[1]", "{", ""])
def test_broken_settings_are_named(content: str, folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer_config\.json: not"):
        read_folder(folder)


def test_another_chat_template_is_said_by_every_file_that_can_say_one(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"eos_token": "</s>", "chat_template": "old"})
    write(folder, "chat_template.json", {"chat_template": "older"})
    for name, text in with_chat_template(folder, "nëw {{ x }}").items():
        (folder / name).write_text(text, encoding="utf-8")
    assert read_folder(folder).chat_template == "nëw {{ x }}"
    assert read_folder(folder).special_tokens == {"eos_token": "</s>"}
    (folder / "chat_template.jinja").unlink()
    for name in ("tokenizer_config.json", "chat_template.json"):
        assert read_folder(folder).chat_template == "nëw {{ x }}"
        (folder / name).unlink()
    assert set(with_chat_template(folder, "t")) == {"chat_template.jinja", "tokenizer_config.json"}
