"""Snippets: the same text in both tokenizers, aligned token by token, and every token gets its turn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from colossal_llama2.errors import InputError
from colossal_llama2.model.snippets import OldTokens, Snippets, choose_snippets, in_batches
from colossal_llama2.tokenizer.encoder import EncodedTexts, Encoder
from colossal_llama2.tokenizer.extension import Extension, read_extension
from colossal_llama2.tokenizer.loading import load_encoder

TEXTS = ["今天天气很好", "the fox jumps. 今天 天气", "no new piece here", "天气很好，天气很好 今天"]


@pytest.fixture
def extension(llama_tokenizer_dir: Path, expanded_tokenizer_dir: Path) -> Extension:
    return read_extension(llama_tokenizer_dir, expanded_tokenizer_dir)


@pytest.fixture
def encoder(expanded_tokenizer_dir: Path) -> Encoder:
    return load_encoder(expanded_tokenizer_dir)


def write(path: Path, texts: list[str]) -> Path:
    lines = (json.dumps({"source": text[:3], "target": text[3:]}) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_old_tokens_are_what_the_base_makes_of_the_text(
    extension: Extension, encoder: Encoder, llama_tokenizer_dir: Path
) -> None:
    base, old = load_encoder(llama_tokenizer_dir), OldTokens(extension)
    compared = 0
    for text in TEXTS:
        ids = encoder.encode([text]).ids
        written, last = old.of(ids)
        assert written.tolist() == base.encode([text]).ids.tolist()
        assert len(last) == len(ids)
        for place, (token, end) in enumerate(zip(ids, last, strict=True)):
            begin = 0 if place == 0 else last[place - 1] + 1
            part = written[begin : end + 1].tolist()
            if token < extension.num_base:
                assert part == [token]
            else:
                compared += 1
                cuts, new = extension.base_tokens, token - extension.num_base
                assert part == cuts.ids[cuts.offsets[new] : cuts.offsets[new + 1]].tolist()
    assert compared >= 4
    empty, ends = old.of(np.zeros(0, dtype=np.int32))
    assert len(empty) == len(ends) == 0


@pytest.mark.parametrize("longest", [3, 8, 100])
def test_snippets_are_short_enough_and_hold_new_tokens(
    longest: int, tmp_path: Path, extension: Extension, encoder: Encoder
) -> None:
    old = OldTokens(extension)
    snippets = choose_snippets([write(tmp_path / "a.jsonl", TEXTS)], encoder, extension, longest, enough=100)
    assert snippets.texts == len(TEXTS)
    seen = np.zeros(extension.num_tokens - extension.num_base, dtype=np.int64)
    for row in snippets.rows:
        assert len(old.of(row)[0]) <= longest
        assert (row >= extension.num_base).any()
        np.add.at(seen, row[row >= extension.num_base] - extension.num_base, 1)
    assert seen.tolist() == snippets.occurrences.tolist()
    if longest == 100:
        assert len(snippets.rows) == 3  # one text holds no new token
        whole = encoder.encode(TEXTS).ids
        expected = np.bincount(whole[whole >= extension.num_base] - extension.num_base, minlength=len(seen))
        assert seen.tolist() == expected.tolist()


def test_a_token_seen_often_enough_asks_for_no_more(tmp_path: Path, extension: Extension, encoder: Encoder) -> None:
    path = write(tmp_path / "a.jsonl", ["x今天今天", *["x今天"] * 50, "x天气", "x今天"])
    snippets = choose_snippets([path], encoder, extension, 100, enough=3)
    assert len(snippets.rows) == 3
    new = [int((row >= extension.num_base).sum()) for row in snippets.rows]
    assert new == [2, 1, 1]  # 今天 twice, once more, then 天气
    assert snippets.levels.tolist() == [0, 2, 0]


def test_reading_ends_when_all_have_had_enough(tmp_path: Path, extension: Extension, encoder: Encoder) -> None:
    first = encoder.encode(["今天"]).ids  # ▁今天
    assert first.tolist() == [extension.num_base + 2]
    one_new = dataclasses.replace(extension, num_base=extension.num_base + 2, num_tokens=extension.num_base + 3)
    cuts = extension.base_tokens
    only = EncodedTexts(cuts.ids[cuts.offsets[2] : cuts.offsets[3]], cuts.offsets[2:4] - cuts.offsets[2])
    one_new = dataclasses.replace(one_new, base_tokens=only)
    path = write(tmp_path / "a.jsonl", ["今天"] * 2000)
    snippets = choose_snippets([path, tmp_path / "absent.jsonl"], encoder, one_new, 100, enough=2)
    assert snippets.occurrences.tolist() == [2]
    assert snippets.texts < 2000


def test_those_that_show_a_token_for_the_first_time_are_used_first() -> None:
    rows = [np.full(1, number, dtype=np.int32) for number in range(10)]
    snippets = Snippets(rows, np.array([0, 1, 0, 2, 1, 0, 0, 3, 1, 0]), np.zeros(1, dtype=np.int64), 10)

    def used(steps: int, batch_size: int, seed: int = 0) -> list[int]:
        batches = list(in_batches(snippets, steps, batch_size, seed))
        assert [len(batch) for batch in batches] == [batch_size] * steps
        return [int(row[0]) for batch in batches for row in batch]

    some = [used(3, 2, seed) for seed in range(20)]
    assert all({0, 2, 5, 6, 9} < set(one) <= {0, 2, 5, 6, 9, 1, 4, 8} for one in some)
    assert len({frozenset(one) for one in some}) == 3
    assert used(3, 2) == used(3, 2)
    often = used(10, 3)
    assert all(sorted(often[epoch : epoch + 10]) == list(range(10)) for epoch in (0, 10, 20))
    assert often[:10] != often[10:20]


def test_plain_text_and_records_give_the_same(tmp_path: Path, extension: Extension, encoder: Encoder) -> None:
    text = "今天天气很好\nthe fox 天气\n"
    plain = tmp_path / "a.txt"
    plain.write_text("\ufeff" + text, encoding="utf-8")
    one = choose_snippets([plain], encoder, extension, 100, enough=5)
    other = choose_snippets([write(tmp_path / "a.jsonl", [text])], encoder, extension, 100, enough=5)
    assert [row.tolist() for row in one.rows] == [row.tolist() for row in other.rows]
    assert one.rows


def test_mistakes(tmp_path: Path, extension: Extension, encoder: Encoder) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(InputError, match=match):
            choose_snippets([path], encoder, extension, 100, enough=5)

    refused(write(tmp_path / "none.jsonl", ["no new piece here"]), "none of the new tokens")
    refused(write(tmp_path / "empty.jsonl", []), "none of the new tokens")
    (tmp_path / "gbk.txt").write_bytes("今天".encode("gbk"))
    refused(tmp_path / "gbk.txt", "not UTF-8")
    refused(tmp_path / "absent.txt", "cannot be read")
    (tmp_path / "bad.jsonl").write_text('{"source": ""}\n')
    refused(tmp_path / "bad.jsonl", 'no "target"')
