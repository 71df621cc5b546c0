"""Prompts answered together are answered as alone, whatever shares their batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.chat.batch_generation import BatchPrompt, continue_in_batches
from colossal_llama2.chat.generation import GenerationOptions, continue_text, encode_prompt, start_reply
from colossal_llama2.model.inference import LoadedModel, load_for_inference

PROMPTS = ["the quick", "a", "今天天气 the lazy dog", "seven wizards vex quietly bold journeys", "x = 3", "journeys"]


@pytest.fixture(scope="module")
def loaded(tiny_model_dir: Path) -> LoadedModel:
    return load_for_inference(tiny_model_dir, "cpu")


def asked(loaded: LoadedModel, options: GenerationOptions, prompts: list[str] = PROMPTS) -> list[BatchPrompt]:
    encoded = [encode_prompt(loaded, prompt) for prompt in prompts]
    return [BatchPrompt(ids, start_reply(loaded, ids, options)) for ids in encoded]


@pytest.mark.parametrize("chosen", [{}, {"stop": ("o", "天")}, {"repetition_penalty": 1.3}], ids=str)
def test_greedy_answers_are_those_of_one_prompt_at_a_time(loaded: LoadedModel, chosen: dict[str, Any]) -> None:
    options = GenerationOptions(**{"max_new_tokens": 16, "do_sample": False, **chosen})
    done: list[int] = []
    together = continue_in_batches(loaded, asked(loaded, options), options, 4, done.append)
    assert sum(done) == len(PROMPTS)
    assert len(done) < len(PROMPTS)  # some did share a batch
    for prompt, answer in zip(PROMPTS, together, strict=True):
        alone = continue_text(loaded, encode_prompt(loaded, prompt), options)
        assert answer == alone
    if "stop" in chosen:
        assert len({len(answer.ids) for answer in together if answer.finish == "stop_string"}) > 1


def test_a_prompt_near_the_end_of_the_context_has_less_room(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    options = GenerationOptions(max_new_tokens=40, do_sample=False)
    prompts = ["fox " * 100, "fox " * 104, "dog " * 104, "fox"]
    together = continue_in_batches(loaded, asked(loaded, options, prompts), options, 2)
    room = [loaded.context_length - len(encode_prompt(loaded, prompt)) for prompt in prompts]
    assert 0 < room[1] == room[2] < room[0] < 40
    for prompt, answer, most in zip(prompts, together, room, strict=True):
        assert answer == continue_text(loaded, encode_prompt(loaded, prompt), options)
        assert len(answer.ids) <= min(most, 40)
    assert "exceeded" not in caplog.text  # not even the padding reaches beyond the context


def test_draws_depend_on_the_seed_and_the_place_alone(loaded: LoadedModel) -> None:
    def drawn(batch_size: int, **more: Any) -> list[str]:
        options = GenerationOptions(**{"max_new_tokens": 10, "seed": 1, "temperature": 1.5, "min_p": 0.001, **more})
        return [answer.text for answer in continue_in_batches(loaded, asked(loaded, options), options, batch_size)]

    one_by_one = drawn(1)
    assert drawn(6) == one_by_one
    assert drawn(6, seed=2) != one_by_one
    assert len(set(one_by_one)) == len(PROMPTS)


def test_drawing_keeps_to_the_options(loaded: LoadedModel) -> None:
    """From one token alone nothing but the likeliest can be drawn."""
    likeliest = GenerationOptions(max_new_tokens=8, do_sample=False)
    expected = continue_in_batches(loaded, asked(loaded, likeliest), likeliest, 3)
    for options in (
        GenerationOptions(max_new_tokens=8, top_k=1, seed=3),
        GenerationOptions(max_new_tokens=8, top_p=1e-6, top_k=0, seed=3),
        GenerationOptions(max_new_tokens=8, min_p=1.0, top_k=0, seed=3),
        GenerationOptions(max_new_tokens=8, temperature=1e-4, seed=3),
    ):
        assert continue_in_batches(loaded, asked(loaded, options), options, 3) == expected
