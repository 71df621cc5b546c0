"""Bits per byte against a second computation, and windows that count every byte once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama2.report.evaluation import Document, Text, evaluate, score_documents, windows
from colossal_llama2.tokenizer.loading import load_encoder

VOCABULARY = 640
START = 1


def tiny_model(context: int = 512) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Bigram(nn.Module):
    """Looks at one token only, so that cutting a text into windows cannot change what it predicts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        return type("Output", (), {"logits": self.table(input_ids)})()


def bits_in_float64(model: Any, ids: np.ndarray, first_scored: int) -> float:
    """Add -log2 p token by token, one document alone, from the model's logits, in float64 numpy."""
    sequence = [START, *ids.tolist()]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sequence])).logits[0].double().numpy()
    total = 0.0
    for position in range(first_scored + 1, len(sequence)):
        row = logits[position - 1]
        probabilities = np.exp(row - row.max())
        total -= math.log2(probabilities[sequence[position]] / probabilities.sum())
    return total


def random_documents(*lengths: int) -> list[Document]:
    rng = np.random.default_rng(0)
    return [Document(rng.integers(3, VOCABULARY, n).astype(np.int32), n // 3) for n in lengths]


def test_bits_equal_an_independent_computation() -> None:
    model = tiny_model()
    documents = random_documents(1, 2, 50, 7, 200, 300)
    measured = score_documents(model, documents, START, window=512)
    expected = [bits_in_float64(model, document.ids, document.first_scored) for document in documents]
    assert measured == pytest.approx(expected, rel=1e-5)


def test_windows_of_a_model_that_looks_back_one_token_give_the_same_bits() -> None:
    documents = random_documents(400, 33, 5, 64)
    whole = score_documents(Bigram(), documents, START, window=512)
    for size in (2, 3, 16, 65):
        assert score_documents(Bigram(), documents, START, window=size) == pytest.approx(whole, rel=1e-5)


def test_each_window_is_scored_given_what_it_shows() -> None:
    """A model of long memory, cut into windows: the bits are those of the windows computed by hand."""
    model, size = tiny_model(), 20
    document = random_documents(50)[0]
    sequence = np.append(np.int32(START), document.ids)
    expected = 0.0
    for one in windows(0, document, size):
        ids = sequence[one.begin : one.end]
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0].double()
        nats = -logits.log_softmax(-1).numpy()
        expected += sum(nats[p - 1, ids[p]] for p in range(one.first_scored - one.begin, len(ids))) / math.log(2)
    assert score_documents(model, [document], START, window=size)[0] == pytest.approx(expected, rel=1e-5)


@settings(deadline=None)
@given(length=st.integers(0, 80), first=st.integers(0, 80), size=st.integers(2, 40))
def test_windows_score_each_token_once_and_look_back_far_enough(length: int, first: int, size: int) -> None:
    document = Document(np.zeros(length, dtype=np.int32), min(first, length))
    scored: list[int] = []
    for one in windows(0, document, size):
        assert 0 <= one.begin < one.first_scored < one.end <= length + 1
        assert one.end - one.begin <= size
        assert one.first_scored - one.begin >= min(one.first_scored, size // 2)
        scored += range(one.first_scored, one.end)
    assert scored == list(range(document.first_scored + 1, length + 1))


def test_a_source_is_read_and_not_scored(llama_tokenizer_dir: Path) -> None:
    encoder, model = load_encoder(llama_tokenizer_dir), tiny_model()
    whole = evaluate(model, encoder, [Text("the quick brown fox")], START, 512)
    split = evaluate(model, encoder, [Text(" brown fox", source="the quick")], START, 512)
    source = evaluate(model, encoder, [Text("the quick")], START, 512)
    assert split.bits == pytest.approx(whole.bits - source.bits, rel=1e-5)
    assert (split.scored_bytes, split.characters, split.tokens) == (10, 19, whole.tokens)


def test_a_model_that_knows_nothing_needs_the_bits_of_its_vocabulary(llama_tokenizer_dir: Path) -> None:
    encoder, model = load_encoder(llama_tokenizer_dir), Bigram()
    nn.init.zeros_(model.table.weight)
    score = evaluate(model, encoder, [Text("今天 fox"), Text("🙂")], START, 512)
    assert score.bits == pytest.approx(score.tokens * math.log2(VOCABULARY), rel=1e-6)
    assert score.scored_bytes == len("今天 fox🙂".encode())
    assert score.bits_per_byte == score.bits / score.scored_bytes
    assert score.tokens_per_character == score.tokens / 7
    assert score.documents == 2


def test_progress_counts_every_position_read() -> None:
    read: list[int] = []
    documents = random_documents(5, 9)
    score_documents(tiny_model(), documents, START, window=512, progress=read.append)
    assert sum(read) == 5 + 1 + 9 + 1
