"""The proof finds what is wrong with a written folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.byte_level_closing import ClosedMerges, Rule, close_merges
from colossal_llama2.tokenizer.byte_level_model import ByteLevelModel, cut_by_merges, read_byte_level, to_letters
from colossal_llama2.tokenizer.byte_level_proof import prove_expansion
from colossal_llama2.tokenizer.byte_level_writing import expanded_content, write_byte_level
from colossal_llama2.tokenizer.folder import read_folder

TEXTS = ["今天", "天气", " 今天天气", "越来越"]


@pytest.fixture(params=["gpt2", "llama3", "qwen"])
def written(
    request: pytest.FixtureRequest, make_byte_level: Callable[[str], Path], tmp_path: Path
) -> tuple[ByteLevelModel, ClosedMerges, Path, Path]:
    source = make_byte_level(request.param)
    model = read_byte_level(Tokenizer.from_file(str(source / "tokenizer.json")), source)
    tokens = [to_letters(text) for text in TEXTS]
    cuts = dict(zip(tokens, cut_by_merges(model.content, tokens), strict=True))
    closed = close_merges(cuts, model.vocab, Rule())
    target = tmp_path / "target"
    target.mkdir()
    write_byte_level(target, read_folder(source), expanded_content(model, closed))
    return model, closed, source, target


Written = tuple[ByteLevelModel, ClosedMerges, Path, Path]


def _prove(written: Written) -> int:
    model, closed, source, target = written
    return prove_expansion(model, closed, TEXTS, source, target)


def test_a_good_folder_is_proved_on_many_texts(written: Written) -> None:
    assert _prove(written) > 1000


def _forget_the_last_merge(content: Any) -> None:
    del content["model"]["merges"][-1]


def _merge_new_ones_first(content: Any) -> None:
    content["model"]["merges"].sort(key=lambda merge: len(merge[0]), reverse=True)


def _swap_two_ids(content: Any) -> None:
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def _leave_added_tokens_to_the_loader(content: Any) -> None:
    for token in content["added_tokens"]:
        content["model"]["vocab"].pop(token["content"], None)


def _another_normalizer(content: Any) -> None:
    content["normalizer"] = {"type": "Lowercase"}


@pytest.mark.parametrize(
    "change",
    [
        _forget_the_last_merge,
        _merge_new_ones_first,
        _swap_two_ids,
        _leave_added_tokens_to_the_loader,
        _another_normalizer,
    ],
)
def test_a_folder_that_was_tampered_with_is_refused(change: Callable[[Any], None], written: Written) -> None:
    path = written[3] / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError):
        _prove(written)


def test_settings_that_make_transformers_build_another_are_refused(
    make_byte_level: Callable[[str], Path], tmp_path: Path
) -> None:
    """Qwen2Tokenizer cuts single digits and forgets ignore_merges, whatever the file says."""
    source = make_byte_level("llama3")
    model = read_byte_level(Tokenizer.from_file(str(source / "tokenizer.json")), source)
    tokens = [to_letters(text) for text in TEXTS]
    cuts = dict(zip(tokens, cut_by_merges(model.content, tokens), strict=True))
    closed = close_merges(cuts, model.vocab, Rule())
    target = tmp_path / "target"
    target.mkdir()
    write_byte_level(target, read_folder(source), expanded_content(model, closed))
    config = json.loads((target / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "Qwen2Tokenizer"}))
    with pytest.raises(InputError, match="transformers"):
        prove_expansion(model, closed, TEXTS, source, target)
