"""Counts of a sample, from every kind of file it may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.compression_rate import measure_compression, read_sample
from colossal_llama2.tokenizer.loading import load_encoder


def test_counts(llama_tokenizer_dir: Path) -> None:
    encoder = load_encoder(llama_tokenizer_dir)
    rate = measure_compression(encoder, ["今天", "the fox"])
    assert (rate.characters, rate.bytes) == (9, 13)
    assert rate.tokens == len(encoder.encode(["今天", "the fox"]).ids)
    assert rate.tokens_per_character == rate.tokens / 9
    assert rate.tokens_per_byte == rate.tokens / 13


def test_samples(tmp_path: Path) -> None:
    jsonl, text = tmp_path / "a.jsonl", tmp_path / "a.txt"
    jsonl.write_text('{"source": "a", "target": "b"}\n{"target": "c"}\n{"text": "d"}\n{"target": ""}\n')
    text.write_bytes(b"\xef\xbb\xbfone\ntwo")
    assert read_sample(jsonl) == ["ab", "c", "d"]
    assert read_sample(text) == ["one\ntwo"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b'{"source": "a"}', 'a.jsonl:1: no "target"'),
        ("a.jsonl", b'{"body": "a"}', 'a.jsonl:1: no "text"'),
        ("a.txt", b"\xff", "not UTF-8"),
        ("a.txt", b"", "holds no text"),
        ("a.jsonl", b"", "holds no text"),
    ],
)
def test_bad_samples(name: str, content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        read_sample(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        read_sample(tmp_path / "absent.txt")
