"""A reply's parts are the text of its ids, up to an end token or a stop string."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colossal_llama2.chat.streaming import TextStream
from colossal_llama2.chat.talk.reply import ReplyStream
from colossal_llama2.tokenizer.loading import load_encoder, load_tokenizer

SLOW_FIXTURE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.lists(st.sampled_from(["the quick", " fox", "今天", "鑫犇", "🙂", "\n", "END", "EN", "D"]), max_size=8)


@pytest.fixture(scope="module", params=["llama_tokenizer_dir", "byte_level_tokenizer_dir"])
def kit(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    folder: Path = request.getfixturevalue(request.param)
    return load_tokenizer(folder), load_encoder(folder)


@SLOW_FIXTURE
@given(said=TEXT, stop=st.lists(st.sampled_from(["END", "今", "🙂", "fox\n"]), max_size=2), ended=st.booleans())
def test_parts_join_to_the_text_cut_at_the_first_end(
    kit: tuple[Any, Any], said: list[str], stop: list[str], ended: bool
) -> None:
    tokenizer, encoder = kit
    text, end = "".join(said), tokenizer.eos_token_id
    ids = encoder.encode([text]).ids.tolist()
    stream = ReplyStream(tokenizer, [], [end], stop)
    parts = [stream.put(index) for index in [*ids, *([end, *ids] if ended else [])]]
    parts.append(stream.end())
    places = [text.index(one) for one in stop if one in text]
    assert "".join(parts) == stream.text == text[: min(places, default=len(text))]
    assert stream.finish == ("stop_string" if places else "end_token" if ended else None)
    if not places:
        assert stream.ids == ids
    assert stream.put(ids[0] if ids else 5) + stream.end() == "" or stream.finish is None


def test_an_end_token_is_no_text_even_where_it_is_an_ordinary_one(llama_tokenizer_dir: Path) -> None:
    tokenizer, encoder = load_tokenizer(llama_tokenizer_dir), load_encoder(llama_tokenizer_dir)
    ids = encoder.encode(["the fox"]).ids.tolist()
    stream = ReplyStream(tokenizer, [], [ids[-1]])
    assert stream.put(ids[0]) == "the"
    assert stream.put(ids[-1]) == ""
    assert (stream.finish, stream.ids) == ("end_token", ids[:1])


@pytest.mark.parametrize(("lead", "expected"), [(" ", "fox"), ("", " fox"), ("\n\n", " fox"), (" \n", "fox")])
def test_the_lead_is_left_out_as_far_as_it_is_there(llama_tokenizer_dir: Path, lead: str, expected: str) -> None:
    tokenizer, encoder = load_tokenizer(llama_tokenizer_dir), load_encoder(llama_tokenizer_dir)
    prompt, ids = (encoder.encode([text]).ids.tolist() for text in ("the", "fox"))
    stream = ReplyStream(tokenizer, prompt, [2], lead=lead)
    assert "".join([*map(stream.put, ids), stream.end()]) == expected


def test_a_character_that_never_got_whole_is_told_at_the_end(byte_level_tokenizer_dir: Path) -> None:
    tokenizer, encoder = load_tokenizer(byte_level_tokenizer_dir), load_encoder(byte_level_tokenizer_dir)
    ids = encoder.encode(["鑫"]).ids.tolist()
    assert len(ids) > 1
    stream, plain = ReplyStream(tokenizer, [], [1]), TextStream(tokenizer, [])
    assert "".join(map(stream.put, ids[:-1])) == ""
    assert stream.end() == "".join([*map(plain.put, ids[:-1]), plain.end()]) != ""
    assert stream.end() == ""
