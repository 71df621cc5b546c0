"""Proof that a fast tokenizer gives SentencePiece's ids, on text chosen to make the two disagree."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from colossal_llama2.tokenizer.piece_model import NORMAL, PieceModel, as_text

ODD_TEXTS: Final = (
    "",
    " ",
    "  ",
    " leading",
    "  two leading",
    "trailing ",
    "trailing   ",
    "a  b   c    d     e",
    "Stop.  How are you?   Fine.",
    "\ta\tb\n\n\nc\r\nd\v\f",
    "\n",
    " \n \n  \n",
    "nul\x00inside\x01\x7f",
    "<s>", "</s>", "<unk>", "<s>a</s>b<unk>", " </s> ", "<s", "s></s",
    "<0x0A>", "<0x00>x",
    "▁", "▁▁a", "a▁b", " ▁ ", "▁ a",
    "😀", "👨‍👩‍👧‍👦 family", "🇨🇳🇫🇷", "𠮷野家 𝔘𝔫𝔦", "a😀b 😀",
    "e\u0301 n\u0303 \u0301", "क्षत्रिय", "עִבְרִית", "اَلْعَرَبِيَّةُ", "한국어 ㄱㄴ", "ไทย",
    "\ufeffbom", "zero\u200bwidth\u200djoiner", "\u3000ideographic\u3000space", "nbsp\u00a0nbsp", "\u2028\u2029",
    "ＦＵＬＬｗｉｄｔｈ１２３", "ﬁ ﬂ ㍿ ½ ①", "\uffff\ufffd\U0010ffff",
    "1234567890 3.14159 -1e-9 0x1F", "http://example.org/?a=1&b=2#c", "def f(x):\n    return x ** 2  # 四舍五入\n",
    "中文English混排123，标点。“引号”…——《书名》",
    "a" * 300, " " * 40 + "x", "\n" * 40, "啊" * 200, "ab " * 100, "▁" * 40,
)  # fmt: skip
_FRAMES: Final = (
    "{}",
    " {}",
    "{} ",
    "  {}  ",
    "a{}b",
    "中{}。",
    "\n{}\t",
    "9{}9",
    "{}</s>",
    "{}😀",
    "{0}{0}",
    "{0} {0}",
)
_BATCH: Final = 2000


@dataclass(frozen=True)
class Mismatch:
    """A text on which two tokenizers differ, with the ids of both."""

    text: str
    expected: tuple[int, ...]
    actual: tuple[int, ...]


def adversarial_texts(
    model: PieceModel, new_ids: Sequence[int], seed: int = 0, num_random: int = 2000
) -> Iterator[str]:
    """Yield odd texts, every new piece beside every kind of neighbour, and random strings of pieces.

    Args:
        model: the model whose pieces are strung together.
        new_ids: the pieces that are set into frames one by one.
        seed: of the random strings.
        num_random: how many of them.
    """
    yield from ODD_TEXTS
    for index in new_ids:
        text = as_text(model.pieces[index].piece)
        yield from (frame.format(text) for frame in _FRAMES)
    generator = random.Random(seed)
    normal = [as_text(entry.piece) for entry in model.pieces if entry.type == NORMAL]
    new = [as_text(model.pieces[index].piece) for index in new_ids] or normal
    glue = ["", "", "", "", " ", "  ", "\n", "。", "😀", "<s>", "x", "7"]
    for _ in range(num_random):
        parts = generator.choices(normal, k=10) + generator.choices(new, k=10)
        generator.shuffle(parts)
        yield "".join(part + generator.choice(glue) for part in parts)


def find_mismatches(
    processor: SentencePieceProcessor, fast: Tokenizer, texts: Iterator[str], limit: int = 10
) -> tuple[list[Mismatch], int]:
    """Encode every text by both and compare.

    Returns:
        The first `limit` mismatches, and the number of texts compared. Nothing is put around the texts, and what
        looks like a special token in them stays text on both sides.
    """
    compared = 0
    mismatches: list[Mismatch] = []
    before, fast.encode_special_tokens = fast.encode_special_tokens, True
    try:
        while batch := list(islice(texts, _BATCH)):
            expected = processor.encode(batch, out_type="numpy")
            actual = fast.encode_batch_fast(batch, add_special_tokens=False)
            compared += len(batch)
            for text, ids, encoding in zip(batch, expected, actual, strict=True):
                if ids.tolist() != encoding.ids and len(mismatches) < limit:
                    mismatches.append(Mismatch(text, tuple(ids.tolist()), tuple(encoding.ids)))
    finally:
        fast.encode_special_tokens = before
    return mismatches, compared


def find_transformers_mismatches(
    processor: SentencePieceProcessor, folder: Path, before: Sequence[int], after: Sequence[int]
) -> list[Mismatch]:
    """Compare what ``AutoTokenizer`` makes of a folder with SentencePiece and the ids to stand before and after a text.

    transformers may put another normalizer or post-processor into a tokenizer that it loads; the odd texts that hold
    no special token (those it takes for the token, by design) show it.
    """
    from transformers import AutoTokenizer  # takes two seconds, and most who import this module need only its texts

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    markers = [token.content for token in tokenizer.added_tokens_decoder.values()]
    texts = [text for text in ODD_TEXTS if not any(marker in text for marker in markers)]
    mismatches: list[Mismatch] = []
    for text, ids in zip(texts, processor.encode(texts, out_type="numpy"), strict=True):
        expected = (*before, *ids.tolist(), *after)
        actual = tuple(tokenizer(text, verbose=False)["input_ids"])
        if actual != expected:
            mismatches.append(Mismatch(text, expected, actual))
    return mismatches
