"""What is a byte-level BPE is read as one, and everything else is refused with what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.byte_level_model import (
    LETTERS,
    cut_by_merges,
    read_byte_level,
    to_bytes,
    to_letters,
)


def _read(content: Any) -> Any:
    return read_byte_level(Tokenizer.from_str(json.dumps(content)), Path("here"))


@pytest.fixture
def content(make_byte_level: Callable[[str], Path]) -> Any:
    return json.loads((make_byte_level("llama3") / "tokenizer.json").read_text(encoding="utf-8"))


def test_letters_are_those_of_tokenizers() -> None:
    assert set(LETTERS) == set(pre_tokenizers.ByteLevel.alphabet())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ("".join(map(chr, range(256))), "你好 😀\n", "\u0100"):
        assert [(to_letters(text), (0, len(text)))] == plain.pre_tokenize_str(text)
        assert to_bytes(to_letters(text)) == text.encode()


def test_what_it_says(make_byte_level: Callable[[str], Path]) -> None:
    for family, ignores, composes in (("gpt2", False, False), ("llama3", True, False), ("qwen", False, True)):
        fast = Tokenizer.from_file(str(make_byte_level(family) / "tokenizer.json"))
        model = read_byte_level(fast, Path("here"))
        assert (model.num_tokens, model.ignore_merges) == (fast.get_vocab_size(), ignores)
        assert model.normalize("e\u0301") == ("é" if composes else "e\u0301")
        assert all(fast.id_to_token(index) == text for index, text in model.added.items())
        assert model.added


def test_merges_alone_cut_even_what_is_a_word(content: Any) -> None:
    content["model"]["vocab"]["ĠxqĠ"] = _end(content)
    content["added_tokens"] = []
    assert Tokenizer.from_str(json.dumps(content)).model.tokenize("ĠxqĠ")[0].value == "ĠxqĠ"
    assert cut_by_merges(content, ["ĠxqĠ", "x"]) == [("Ġx", "q", "Ġ"), ("x",)]


def _end(content: Any) -> int:
    content["added_tokens"] = []
    content["post_processor"] = None
    return len(content["model"]["vocab"])


def _drop_a_byte(content: Any) -> None:
    _end(content)
    vocab = content["model"]["vocab"]
    last = max(vocab, key=vocab.get)
    content["model"]["merges"] = []
    vocab[last], _ = vocab.pop("Ā"), vocab.pop(last)


def _leave_a_gap(content: Any) -> None:
    content["model"]["vocab"]["zzz"] = _end(content) + 1


def _set(name: str, value: Any) -> Callable[[Any], None]:
    return lambda content: content["model"].update({name: value})


def _cut_again(content: Any) -> None:
    content["pre_tokenizer"]["pretokenizers"].append({"type": "Digits", "individual_digits": True})


def _no_bytes(content: Any) -> None:
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


def _other_decoder(content: Any) -> None:
    content["decoder"] = {"type": "Fuse"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_drop_a_byte, "no token for 1 of the 256 bytes, such as 0x00"),
        (_leave_a_gap, "no token has id 420, but 'zzz' has 421"),
        (_set("end_of_word_suffix", "</w>"), "end_of_word_suffix"),
        (_set("dropout", 0.1), "at random"),
        (_cut_again, "cuts its text again"),
        (_no_bytes, "pre-tokenizer does not go by bytes"),
        (_other_decoder, "decoder does not go by bytes"),
    ],
)
def test_what_cannot_be_expanded_exactly_is_refused(change: Callable[[Any], None], reason: str, content: Any) -> None:
    _read(content)
    change(content)
    with pytest.raises(InputError, match=reason):
        _read(content)


def test_other_algorithms_are_refused() -> None:
    with pytest.raises(InputError, match="type Unigram"):
        read_byte_level(Tokenizer(Unigram([("a", 0.0)], 0, False)), Path("here"))
    bare = Tokenizer(BPE())
    bare.normalizer = normalizers.NFC()
    bare.decoder = decoders.ByteLevel()
    with pytest.raises(InputError, match="not byte-level"):
        read_byte_level(bare, Path("here"))
