"""A text in a batch is the text written alone, whenever its neighbours come and go."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from colossal_llama2.chat.serving.batch_cache import check_cache
from colossal_llama2.chat.serving.batching import Batch, Writing
from colossal_llama2.chat.serving.sampling import Drawer, SamplingOptions
from colossal_llama2.errors import InputError
from colossal_llama2.model.inference import LoadedModel, load_for_inference

SHAPE = {
    "vocab_size": 640,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="module")
def loaded(long_model_dir: Path) -> LoadedModel:
    return load_for_inference(long_model_dir, "cpu")


def writings(number: int, temperature: float) -> list[tuple[list[int], SamplingOptions, int]]:
    """Return so many prompts of many lengths, each with its options and how many tokens to write."""
    chance = random.Random(3)
    return [
        (
            [1, *(chance.randrange(3, 600) for _ in range(chance.choice((1, 2, 9, 40))))],
            SamplingOptions(temperature=temperature, top_p=chance.choice((1.0, 0.9)), seed=seed),
            chance.choice((1, 2, 7, 20)),
        )
        for seed in range(number)
    ]


def alone(loaded: LoadedModel, prompt: list[int], options: SamplingOptions, number: int) -> list[int]:
    return together(loaded, [(prompt, options, number)], 1)[0]


def together(
    loaded: LoadedModel, wanted: list[tuple[list[int], SamplingOptions, int]], width: int, prefill_tokens: int = 10_000
) -> list[list[int]]:
    """Write all, so many at a time: each joins when another has left."""
    batch = Batch(loaded, prefill_tokens)
    all_writings = [Writing(prompt, Drawer(options)) for prompt, options, _ in wanted]
    limits = {writing: number for writing, (_, _, number) in zip(all_writings, wanted, strict=True)}
    waiting = list(all_writings)
    while waiting or batch.size:
        while waiting and batch.size < width:
            batch.add([waiting.pop(0)])
        for tokens in (batch.read, batch.step):
            for writing, _ in tokens():
                if len(writing.written) == limits[writing]:
                    batch.remove(writing)
    return [writing.written for writing in all_writings]


def test_greedy_texts_are_those_of_plain_generate(loaded: LoadedModel, long_model_dir: Path) -> None:
    wanted = writings(8, 0.0)
    model: Any = AutoModelForCausalLM.from_pretrained(long_model_dir, dtype=torch.float32).eval()
    expected = []
    for prompt, _, number in wanted:
        ids = torch.tensor([prompt])
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=number,
            min_new_tokens=number,
            do_sample=False,
            suppress_tokens=[2, *range(loaded.encoder.num_tokens, 640)],
        )
        expected.append(output[0, len(prompt) :].tolist())
    no_end = SamplingOptions(temperature=0, logit_bias={2: -1e9})
    for width, prefill_tokens in ((5, 10_000), (3, 16)):
        got = together(loaded, [(prompt, no_end, number) for prompt, _, number in wanted], width, prefill_tokens)
        assert got == expected


def test_a_drawn_text_depends_on_its_seed_alone(loaded: LoadedModel) -> None:
    wanted = writings(9, 1.0)
    expected = [alone(loaded, *one) for one in wanted]
    assert together(loaded, wanted, 6, 32) == expected
    assert together(loaded, wanted[::-1], 4)[::-1] == expected


def test_texts_of_one_prompt_read_it_once_and_go_their_ways(loaded: LoadedModel) -> None:
    prompt = writings(1, 1.0)[0][0]
    options = [SamplingOptions(seed=seed) for seed in range(3)]
    batch = Batch(loaded, 512)
    group = [Writing(prompt, Drawer(one)) for one in options]
    batch.add(group)
    assert len(batch.read()) == 3
    for _ in range(11):
        batch.step()
    assert [writing.written for writing in group] == [alone(loaded, prompt, one, 12) for one in options]
    assert batch.steps == 11


def test_removed_texts_leave_no_trace(loaded: LoadedModel) -> None:
    wanted = writings(6, 1.0)
    batch = Batch(loaded, 8)
    staying, leaving = (Writing(wanted[i][0], Drawer(wanted[i][1])) for i in (4, 5))
    batch.add([leaving])
    batch.read()
    batch.remove(leaving)  # while its prompt is read
    batch.remove(leaving)
    batch.add([staying])
    batch.add([leaving])
    while len(staying.written) < 9 or batch.size > 1:
        batch.read()
        batch.step()
        if len(leaving.written) == 4:
            batch.remove(leaving)  # while it is written
    assert batch.size == 1
    assert staying.written[:9] == alone(loaded, *wanted[4][:2], 9)


def test_a_sliding_window_reaches_as_far_in_a_batch(loaded: LoadedModel) -> None:
    torch.manual_seed(2)
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8)).eval()
    windowed = LoadedModel(model, loaded.encoder, loaded.tokenizer, loaded.device, 512)
    check_cache(model, "x")
    wanted = writings(5, 0.0)
    for (prompt, _, number), got in zip(wanted, together(windowed, wanted, 3, 64), strict=True):
        ids = torch.tensor([prompt])
        plain = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=number,
            min_new_tokens=number,
            do_sample=False,
            eos_token_id=None,
            suppress_tokens=list(range(loaded.encoder.num_tokens, 640)),
        )
        assert got == plain[0, len(prompt) :].tolist()


def test_the_longest_texts_room_is_given_back(loaded: LoadedModel) -> None:
    batch = Batch(loaded, 512)
    writing = Writing([1, 5, 6], Drawer(SamplingOptions()))
    batch.add([writing])
    batch.read()
    batch.step()
    assert batch._cache.layers
    batch.remove(writing)
    assert not batch._cache.layers
    assert not batch._cache.lengths


def test_a_model_that_gives_no_numbers_is_an_error(loaded: LoadedModel) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    model.lm_head.weight.data.fill_(torch.nan)
    batch = Batch(LoadedModel(model, loaded.encoder, loaded.tokenizer, loaded.device, 512), 512)
    batch.add([Writing([1, 2], Drawer(SamplingOptions()))])
    with pytest.raises(FloatingPointError):
        batch.read()


def test_a_model_with_another_memory_is_refused() -> None:
    from transformers import MambaConfig

    class Model:
        config = MambaConfig(num_hidden_layers=2, hidden_size=8)

    with pytest.raises(InputError, match="keeps more than keys and values"):
        check_cache(Model(), "folder")
