"""Long documents: encoded in stretches they give the tokens of the whole, whatever the text and wherever the seam."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset import long_documents
from colossal_llama2.dataset.encoded import TOKENS_FILE, ShardWriter
from colossal_llama2.dataset.long_documents import encode_giant
from colossal_llama2.tokenizer import cuts
from colossal_llama2.tokenizer.cuts import StretchEncoder
from colossal_llama2.tokenizer.loading import load_encoder

WORDS = ["the", " fox", "quick", "今天", "天气", "龘", "。", "\n", "\n\n", " ", "  ", "▁", "😀", "7", "</s>", "a" * 9]


@dataclass(frozen=True)
class Chunked:
    """A record in chunks of some characters."""

    source: str
    target: str
    size: int
    category: str = "long"

    def source_chunks(self) -> Iterator[str]:
        """Yield the source."""
        return (self.source[at : at + self.size] for at in range(0, len(self.source), self.size))

    def target_chunks(self) -> Iterator[str]:
        """Yield the target."""
        return (self.target[at : at + self.size] for at in range(0, len(self.target), self.size))


def encode(record: Chunked, tokenizer_dir: Path) -> tuple[list[int], int, bool, int]:
    """Tokens, unlearned ones, whether one straddles, and the stretches it took."""
    encoder = load_encoder(tokenizer_dir)
    stretches = StretchEncoder(tokenizer_dir, encoder)
    calls = []
    plain = stretches.encode
    stretches.encode = lambda *arguments: calls.append(1) or plain(*arguments)  # type: ignore[method-assign, func-returns-value]
    with tempfile.TemporaryDirectory() as work, ShardWriter(Path(work), "") as writer:
        encode_giant(writer, record, encoder, stretches, "none")
        writer.end_segment(1)
        shard = writer.finish([])
        [row] = shard.documents()
        ids = np.fromfile(Path(work, TOKENS_FILE), dtype="<i4").tolist()
    text = record.source + record.target
    assert (row["tokens"], row["characters"], row["bytes"]) == (len(ids), len(text), len(text.encode()))
    return ids, int(row["unlearned"]), bool(row["straddles"]), len(calls)


@pytest.mark.parametrize("kind", ["llama", "byte_level"])
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), sizes=st.tuples(st.integers(0, 60), st.integers(1, 400)), chunk=st.integers(1, 90))
def test_stretches_give_the_tokens_of_the_whole(
    kind: str, seed: int, sizes: tuple[int, int], chunk: int, llama_tokenizer_dir: Path, byte_level_tokenizer_dir: Path
) -> None:
    tokenizer_dir = llama_tokenizer_dir if kind == "llama" else byte_level_tokenizer_dir
    draw = random.Random(seed)
    source, target = ("".join(draw.choices(WORDS, k=size)) for size in sizes)
    encoder = load_encoder(tokenizer_dir)
    encoded, counts, straddles = encoder.encode_with_seam([source + target], [len(source)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_documents, "STRETCH", 40)
        patch.setattr(cuts, "_AROUND", 16)
        ids, unlearned, straddled, _ = encode(Chunked(source, target, chunk), tokenizer_dir)
    assert ids == [encoder.bos_token_id, *encoded.ids.tolist(), encoder.eos_token_id]
    assert (unlearned, straddled) == (1 + counts[0], straddles[0])


def test_it_is_really_cut(llama_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_documents, "STRETCH", 4000)
    *_, calls = encode(Chunked("", "the quick fox 今天。\n" * 4000, 1000), llama_tokenizer_dir)
    assert calls >= 10


def test_a_text_that_cannot_be_cut_is_encoded_whole(llama_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_documents, "STRETCH", 100)
    monkeypatch.setattr(cuts, "_AROUND", 16)
    text = " " * 3000  # runs of spaces are pieces: whether two of them belong together depends on all before
    ids, *_, calls = encode(Chunked("", text, 50), llama_tokenizer_dir)
    assert ids[1:-1] == load_encoder(llama_tokenizer_dir).encode([text]).ids.tolist()
    assert calls == 1
