"""A byte-level BPE tokenizer as its ``tokenizer.json`` says it: letters for bytes, vocabulary, merges, added tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.folder import JSON_FILE, MODEL_FILE, MarkerToken, TokenizerFolder

Merge = tuple[str, str]


def _letters_of_bytes() -> list[str]:
    """Give every byte the printable character that stands for it in a vocabulary, as GPT-2 numbered them."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


LETTERS: Final = tuple(_letters_of_bytes())
"""The letter of every byte; a space is Ġ, a line break Ċ."""
_BYTES: Final = {letter: byte for byte, letter in enumerate(LETTERS)}


def to_letters(text: str) -> str:
    """Write a text as a byte-level vocabulary does: one letter a byte of its UTF-8.

    Half a surrogate pair, which no text holds, gets the three bytes it would have.
    """
    return "".join(LETTERS[byte] for byte in text.encode("utf-8", "surrogatepass"))


def to_bytes(letters: str) -> bytes:
    """Read letters back; a token may end or begin inside a character, so these are bytes and not a text."""
    return bytes(_BYTES[letter] for letter in letters)


@dataclass(frozen=True)
class ByteLevelModel:
    """A byte-level BPE tokenizer, read and found fit to be expanded.

    Attributes:
        fast: the tokenizer itself, without truncation and padding.
        content: its ``tokenizer.json`` as `tokenizers` writes it.
        vocab: token to id, of the learned tokens and of those added tokens that have an id among them.
        added: every added token, by id.
        num_tokens: vocabulary and added tokens together; ids run from 0 to here without a gap.
    """

    fast: Tokenizer
    content: dict[str, Any]
    vocab: dict[str, int]
    added: dict[int, str]
    num_tokens: int

    @property
    def ignore_merges(self) -> bool:
        """Whether a word of the pre-tokenizer that stands in the vocabulary as a whole needs no merges."""
        return bool(self.content["model"].get("ignore_merges"))

    def normalize(self, text: str) -> str:
        """Return the text as it reaches the pre-tokenizer."""
        return str(self.fast.normalizer.normalize_str(text)) if self.fast.normalizer else text


def cut_by_merges(content: dict[str, Any], tokens: Iterable[str]) -> list[tuple[str, ...]]:
    """Cut letters into tokens by the merges of a ``tokenizer.json`` alone, whatever stands in it as a whole word."""
    bare = {**content, "added_tokens": [], "post_processor": None}
    bare["model"] = {**content["model"], "ignore_merges": False}
    merging = Tokenizer.from_str(json.dumps(bare))
    return [tuple(token.value for token in merging.model.tokenize(letters)) for letters in tokens]


def read_byte_level(fast: Tokenizer, path: Path) -> ByteLevelModel:
    """Take a tokenizer for what it is, if it is a byte-level BPE whose expansion can be exact.

    Args:
        fast: the tokenizer.
        path: where it came from, for complaints.

    Raises:
        InputError: another algorithm, not byte-level, a byte without a token, ids with gaps, or a special token that
            plain text would give once it stands in the vocabulary.
    """
    content = json.loads(fast.to_str())
    fast.no_truncation()
    fast.no_padding()
    objection = _objection(content)
    if objection:
        raise InputError(objection, path=path, remedy=f"give a byte-level BPE tokenizer, or one with a {MODEL_FILE}")
    vocab = dict(content["model"]["vocab"])
    missing = [byte for byte, letter in enumerate(LETTERS) if letter not in vocab]
    if missing:
        raise InputError(
            f"has no token for {len(missing)} of the 256 bytes, such as 0x{missing[0]:02x}, so it drops text",
            path=path,
            remedy="give a tokenizer with the whole byte alphabet",
        )
    added = {int(entry["id"]): str(entry["content"]) for entry in content["added_tokens"]}
    _refuse_gaps(vocab, added, path)
    model = ByteLevelModel(fast, content, vocab, added, len(set(vocab.values()) | set(added)))
    _refuse_words(model, path)
    return model


def add_named_tokens(fast: Tokenizer, folder: TokenizerFolder) -> Tokenizer:
    """Add the tokens that a folder's settings name and its ``tokenizer.json`` lacks, as transformers does on load.

    Raises:
        InputError: the two give a token different ids, or the ids leave a gap.
    """
    named = [MarkerToken(-1, content) for content in (*folder.special_tokens.values(), *folder.extra_special_tokens)]
    for token in (*folder.added_tokens.values(), *named):
        index = fast.token_to_id(token.content)
        if index is None:
            fast.add_tokens([as_added_token(token)])
            index = fast.token_to_id(token.content)
        if token.id not in (-1, index):
            raise InputError(
                f"the settings give the token {token.content!r} the id {token.id}, {JSON_FILE} gives it {index}",
                path=folder.path,
                remedy="give a folder whose files belong together, its tokens numbered without a gap",
            )
    return fast


def as_added_token(token: MarkerToken) -> AddedToken:
    """Write a token of the settings as `tokenizers` takes it."""
    return AddedToken(
        token.content,
        special=token.special,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
        normalized=token.normalized,
    )


def parts_of(content: Any, kind: str) -> list[dict[str, Any]]:
    """List a normalizer, pre-tokenizer or decoder with everything inside its sequences, in order."""
    if not content:
        return []
    if content["type"] == "Sequence":
        return [part for inner in content[kind] for part in parts_of(inner, kind)]
    return [content]


def _objection(content: dict[str, Any]) -> str | None:
    """Say what makes a tokenizer something else than a byte-level BPE that repeats exactly, if anything does."""
    model = content["model"]
    if model["type"] != "BPE":
        return f"a tokenizer of type {model['type']}"
    for name, kind in (("pre_tokenizer", "pretokenizers"), ("decoder", "decoders")):
        if not any(part["type"] == "ByteLevel" for part in parts_of(content[name], kind)):
            return f"not byte-level: its {name.replace('_', '-')} does not go by bytes"
    if parts_of(content["pre_tokenizer"], "pretokenizers")[-1]["type"] != "ByteLevel":
        return "cuts its text again after writing it in bytes"
    if model.get("dropout"):
        return "drops merges at random"
    affixes: Sequence[str] = ("continuing_subword_prefix", "end_of_word_suffix")
    marked = next((name for name in affixes if model.get(name)), None)
    return f"sets {marked}, which byte-level tokenizers do without" if marked else None


def _refuse_gaps(vocab: dict[str, int], added: dict[int, str], path: Path) -> None:
    remedy = "number its tokens from 0 without a gap or a repetition"
    for index, content in added.items():
        if vocab.get(content, index) != index:
            raise InputError(
                f"the added token {content!r} has id {index} there and {vocab[content]} in the vocabulary",
                path=path,
                remedy=remedy,
            )
    texts = {**{index: text for text, index in vocab.items()}, **added}
    for expected, index in enumerate(sorted(texts)):
        if index != expected:
            raise InputError(f"no token has id {expected}, but {texts[index]!r} has {index}", path=path, remedy=remedy)


def _refuse_words(model: ByteLevelModel, path: Path) -> None:
    """An expanded file has every added token in its vocabulary, where `ignore_merges` looks words up."""
    special = [str(entry["content"]) for entry in model.content["added_tokens"] if entry["special"]]
    for text in special if model.ignore_merges else []:
        words = model.fast.pre_tokenizer.pre_tokenize_str(model.normalize(text))
        if text not in model.vocab and any(word == text for word, _ in words):
            raise InputError(
                f"the special token {text!r} is written like a word, and ignore_merges would find it in text",
                path=path,
                remedy="give the special token a text that the pre-tokenizer cuts, such as <|...|>",
            )
