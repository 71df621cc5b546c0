"""Streamed text is the text of all ids, whatever stands in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from colossal_llama2.chat.streaming import TextStream
from colossal_llama2.tokenizer.loading import load_encoder, load_tokenizer

TEXTS = [
    "",
    "the quick fox",
    " leading",
    "今天天气很好",
    "鑫犇🙂👩‍👩‍👧‍👦 mixed 龘 text\n\n  more",
    "tab\tand\u0000nul",
    "é️\u200d",
]
FIXTURES = ["llama_tokenizer_dir", "byte_level_tokenizer_dir"]
SLOW_FIXTURE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def streamed(tokenizer: object, prompt_ids: list[int], ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer, prompt_ids)
    return [*(stream.put(index) for index in ids), stream.end()]


@pytest.fixture(params=FIXTURES)
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@SLOW_FIXTURE
@given(data=st.data())
def test_parts_join_to_the_text_that_was_encoded(folder: Path, data: st.DataObject) -> None:
    # SentencePiece writes a blank as U+2581, so that one that stands in the text comes back as a blank.
    text = data.draw(
        st.sampled_from(TEXTS) | st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=40)
    )
    tokenizer, encoder = load_tokenizer(folder), load_encoder(folder)
    ids = encoder.encode([text]).ids.tolist()
    assert "".join(streamed(tokenizer, [], ids)) == text
    for cut in range(1, len(ids)):
        # Behind a prompt too, where the first generated token may bring its own space.
        before = "".join(streamed(tokenizer, [], ids[:cut]))
        if "\N{REPLACEMENT CHARACTER}" not in before:
            assert before + "".join(streamed(tokenizer, ids[:cut], ids[cut:])) == text


@SLOW_FIXTURE
@given(data=st.data())
def test_any_ids_give_what_sentencepiece_decodes(llama_tokenizer_dir: Path, data: st.DataObject) -> None:
    tokenizer = load_tokenizer(llama_tokenizer_dir)
    processor = SentencePieceProcessor(model_file=str(llama_tokenizer_dir / "tokenizer.model"))
    ids = data.draw(st.lists(st.integers(3, processor.vocab_size() - 1) | st.integers(3, 258), max_size=12))
    assert "".join(streamed(tokenizer, [], ids)) == processor.decode(ids)


@SLOW_FIXTURE
@given(data=st.data())
def test_any_ids_give_what_a_byte_level_tokenizer_decodes(byte_level_tokenizer_dir: Path, data: st.DataObject) -> None:
    tokenizer = load_tokenizer(byte_level_tokenizer_dir)
    ids = data.draw(st.lists(st.integers(2, len(tokenizer) - 1), max_size=12))
    assert "".join(streamed(tokenizer, [], ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_characters_made_of_bytes_appear_whole_and_at_once(folder: Path) -> None:
    tokenizer, encoder = load_tokenizer(folder), load_encoder(folder)
    ids = encoder.encode(["鑫🙂犇"]).ids.tolist()
    parts = streamed(tokenizer, [], ids)
    assert len(ids) > 6
    assert [part for part in parts if part.strip()] == ["鑫", "🙂", "犇"]
    assert parts[-1] == ""


def test_special_tokens_leave_no_text(folder: Path) -> None:
    tokenizer, encoder = load_tokenizer(folder), load_encoder(folder)
    ids = encoder.encode(["fox"]).ids.tolist()
    assert encoder.bos_token_id is not None
    assert encoder.eos_token_id is not None
    assert "".join(streamed(tokenizer, [], [encoder.bos_token_id, *ids, encoder.eos_token_id])) == "fox"


def test_a_torn_character_at_the_end_is_shown_as_such(llama_tokenizer_dir: Path) -> None:
    tokenizer, encoder = load_tokenizer(llama_tokenizer_dir), load_encoder(llama_tokenizer_dir)
    ids = encoder.encode(["a 鑫"]).ids.tolist()[:-1]
    assert streamed(tokenizer, [], ids)[-1] == "\N{REPLACEMENT CHARACTER}" * 2
