"""Proof that an expanded byte-level tokenizer does what it should, as `tokenizers` and as transformers read it.

What it should do is said twice over: the base cuts the text, then the new merges are applied to its tokens, word by
word, in plain Python. No text can so get more tokens than before.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Final

from tokenizers import Encoding, Tokenizer
from transformers import AutoTokenizer

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.byte_level_closing import ClosedMerges, merge_parts
from colossal_llama2.tokenizer.byte_level_model import ByteLevelModel, cut_by_merges, to_bytes, to_letters
from colossal_llama2.tokenizer.folder import JSON_FILE
from colossal_llama2.tokenizer.loading import load_tokenizer

_ODD_TEXTS: Final = (
    "", " ", "  ", " leading", "  two leading", "trailing ", "trailing   ", "a  b   c    d     e", "\n", " \n \n  \n",
    "Stop.  How are you?   Fine. I'm, you're, WE'LL; don't", "\ta\tb\n\n\nc\r\nd\v\f", "nul\x00inside\x01\x7f",
    "e\u0301 n\u0303 \u0301", "\u1100\u1161\u11a8 \u212b", "क्षत्रिय", "עִבְרִית", "اَلْعَرَبِيَّةُ", "한국어 ㄱㄴ", "ไทย",
    "😀", "👨‍👩‍👧‍👦 family", "🇨🇳🇫🇷", "𠮷野家 𝔘𝔫𝔦", "a😀b 😀", "▁", "▁▁a", "a▁b", "Ġ Ċ Ġthe",
    "\ufeffbom", "zero\u200bwidth\u200djoiner", "\u3000ideographic\u3000space", "nbsp\u00a0nbsp", "\u2028\u2029",
    "ＦＵＬＬｗｉｄｔｈ１２３", "ﬁ ﬂ ㍿ ½ ①", "\uffff\ufffd\U0010ffff", "1234567890 3.14159 -1e-9 0x1F",
    "http://example.org/?a=1&b=2#c", "def f(x):\n    return x ** 2  # 四舍五入\n",
    "中文English混排123，标点。“引号”…——《书名》",
    "a" * 300, " " * 40 + "x", "\n" * 40, "啊" * 200, "ab " * 100,
)  # fmt: skip
_FRAMES: Final = ("{}", " {}", "a{}b", "中{}。", "\n{}\t", "9{}😀", "{0}{0}", "一{}的")
_BATCH: Final = 2000
_NUM_RANDOM: Final = 1000
_SHOWN: Final = 60


@dataclass(frozen=True)
class NewMerges:
    """New tokens on top of a base: a second, slow way of encoding with them.

    Attributes:
        ranks: the new merges, numbered in their order.
        ids: the new tokens, in letters, with their ids.
        whole_words: whether a word that is a new token as a whole is that token without merges (``ignore_merges``).
    """

    ranks: dict[tuple[str, str], int]
    ids: dict[str, int]
    whole_words: bool

    def apply(self, encoding: Encoding) -> list[int]:
        """Apply the new merges to what the base made of a text (special tokens kept as text)."""
        ids, tokens = encoding.ids, encoding.tokens
        result: list[int] = []
        for _, group in groupby(range(len(ids)), key=encoding.word_ids.__getitem__):
            places = list(group)
            if len(places) == 1:
                result.append(ids[places[0]])
                continue
            known = {tokens[place]: ids[place] for place in places}
            parts = [tokens[place] for place in places]
            whole = "".join(parts)
            parts = [whole] if self.whole_words and whole in self.ids else merge_parts(parts, self.ranks)
            result += [self.ids[part] if part in self.ids else known[part] for part in parts]
        return result


def new_merges(model: ByteLevelModel, closed: ClosedMerges) -> NewMerges:
    """Number new merges and tokens behind those of a base."""
    ranks = {merge: rank for rank, merge in enumerate(closed.merges)}
    ids = {token: index for index, token in enumerate(closed.tokens, model.num_tokens)}
    return NewMerges(ranks, ids, model.ignore_merges)


def prove_expansion(
    model: ByteLevelModel, closed: ClosedMerges, pieces: Sequence[str], source: Path, target: Path
) -> int:
    """Hold a written folder against what it should do.

    Args:
        model: the base.
        closed: what was added to it.
        pieces: the texts of the pieces, each of which must be one token.
        source: the base's folder.
        target: the written folder.

    Returns:
        The number of texts compared.

    Raises:
        InputError: an id moved, a piece does not come out, or two ways of encoding differ on a text, which is quoted.
    """
    expanded = Tokenizer.from_file(str(target / JSON_FILE))
    expanded.no_truncation()
    expanded.no_padding()
    merges = new_merges(model, closed)
    _check_ids(model, expanded, merges)
    _check_pieces(expanded, pieces)
    odd = (*_ODD_TEXTS, *model.added.values())
    framed = (frame.format(piece) for piece in pieces for frame in _FRAMES)
    compared = 0
    came_out: set[int] = set()
    for texts in _batches(chain(odd, _random_texts(pieces, model), framed)):
        came_out.update(*_compare(model.fast, expanded, merges, texts))
        compared += len(texts)
    never = [piece for piece in pieces if merges.ids[to_letters(piece)] not in came_out]
    if never:
        raise InputError(f"the piece {never[0]!r} comes out of none of the texts tried with it")
    _check_transformers(expanded, source, target, odd)
    return compared


def _random_texts(pieces: Sequence[str], model: ByteLevelModel) -> Iterator[str]:
    """Yield random strings of old tokens and pieces."""
    generator = random.Random(0)
    added, markers = list(model.added.values()), set(model.added.values())
    old = [to_bytes(token).decode("utf-8", "ignore") for token in model.vocab if token not in markers]
    glue = ["", "", "", "", " ", "  ", "\n", "。", "😀", "x", "7", *added[:3]]
    for _ in range(_NUM_RANDOM):
        parts = generator.choices(old, k=10) + generator.choices(pieces or old, k=10)
        generator.shuffle(parts)
        yield "".join(part + generator.choice(glue) for part in parts)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(texts, _BATCH)):
        yield batch


def _compare(base: Tokenizer, expanded: Tokenizer, merges: NewMerges, texts: list[str]) -> Iterator[list[int]]:
    """Yield the ids of each text, once the slow way gives them too and they decode to what the base's decode to."""
    before = base.encode_special_tokens
    base.encode_special_tokens = expanded.encode_special_tokens = True
    try:
        old = base.encode_batch(texts, add_special_tokens=False)
        new = expanded.encode_batch_fast(texts, add_special_tokens=False)
    finally:
        base.encode_special_tokens, expanded.encode_special_tokens = before, False
    for text, first, second in zip(texts, old, new, strict=True):
        expected = merges.apply(first)
        if second.ids != expected:
            raise _mismatch("this expansion", text, second.ids, expected)
    decoded = base.decode_batch([one.ids for one in old]), expanded.decode_batch([one.ids for one in new])
    for text, was, now in zip(texts, *decoded, strict=True):
        if was != now:
            raise InputError(f"the expanded tokenizer decodes {text[:_SHOWN]!r} to {now[:_SHOWN]!r}")
    yield from (one.ids for one in new)


def _check_ids(model: ByteLevelModel, expanded: Tokenizer, merges: NewMerges) -> None:
    """No id of the base has moved, and new ones follow without a gap."""
    expected = {**model.fast.get_vocab(with_added_tokens=True), **merges.ids}
    if expanded.get_vocab(with_added_tokens=True) != expected:
        raise InputError("the ids of the base would change", remedy="give a tokenizer.json as its authors wrote it")


def _check_pieces(expanded: Tokenizer, pieces: Sequence[str]) -> None:
    """Every piece comes out of its own letters by merges; as a whole word it may need none, which proves nothing."""
    tokens = [to_letters(piece) for piece in pieces]
    for piece, token, cut in zip(pieces, tokens, cut_by_merges(json.loads(expanded.to_str()), tokens), strict=True):
        if cut != (token,):
            raise InputError(f"{piece!r} does not come out of its own text, which gives {len(cut)} tokens")


def _check_transformers(expanded: Tokenizer, source: Path, target: Path, texts: Sequence[str]) -> None:
    """transformers may build a tokenizer of its own out of a folder; it must be the same, with the same around it."""
    auto, before = AutoTokenizer.from_pretrained(str(target)), load_tokenizer(source)
    if len(auto) != expanded.get_vocab_size():
        raise InputError(f"transformers counts {len(auto)} tokens, tokenizers {expanded.get_vocab_size()}")
    for text in texts:
        expected = expanded.encode(text, add_special_tokens=False).ids
        found = auto(text, add_special_tokens=False, verbose=False)["input_ids"]
        if found != expected:
            raise _mismatch("transformers", text, found, expected)
    around, expected = auto("")["input_ids"], before("")["input_ids"]
    if around != expected:
        raise _mismatch("transformers", "", around, expected)


def _mismatch(who: str, text: str, actual: Sequence[int], expected: Sequence[int]) -> InputError:
    return InputError(
        f"{who} gives {list(actual)[:20]} for {text[:_SHOWN]!r}, where {list(expected)[:20]} is due",
        remedy="take the pieces of that text out of the list, or start from another base",
    )
