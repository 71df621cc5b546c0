"""Continuing a prompt: stream, stop, seed, limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama2.chat.generation import (
    Continuation,
    GenerationOptions,
    Watching,
    check_options,
    continue_text,
    encode_prompt,
)
from colossal_llama2.errors import InputError
from colossal_llama2.model.inference import LoadedModel, load_for_inference


@pytest.fixture(scope="module")
def loaded(tiny_model_dir: Path) -> LoadedModel:
    return load_for_inference(tiny_model_dir, "cpu")


def run(loaded: LoadedModel, prompt: str, **options: Any) -> tuple[Continuation, list[str]]:
    parts: list[str] = []
    ids = encode_prompt(loaded, prompt)
    return continue_text(loaded, ids, GenerationOptions(**options), parts.append), parts


def recite(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, text_ids: list[int]) -> None:
    """Make the model say exactly these ids, whatever it is asked."""
    said = iter(text_ids)

    def forward(input_ids: torch.Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        logits = torch.zeros(1, input_ids.shape[1], 640)
        logits[0, -1, next(said)] = 1000.0
        return CausalLMOutputWithPast(logits=logits)

    monkeypatch.setattr(loaded.model, "forward", forward)


def test_what_is_streamed_is_the_decoded_text(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " fox 今天鑫犇 🙂👩‍👩‍👧 龘\nover"
    whole = loaded.encoder.encode(["the" + text]).ids.tolist()
    ids = whole[len(loaded.encoder.encode(["the"]).ids) :]
    recite(loaded, monkeypatch, [*ids, 2])
    written, parts = run(loaded, "the", max_new_tokens=100)
    assert written.ids == ids
    assert written.ended
    assert "".join(parts) == written.text == text
    prompt_ids = encode_prompt(loaded, "the")
    decode = loaded.tokenizer.decode
    assert "the" + written.text == decode(prompt_ids + written.ids, skip_special_tokens=True)
    assert len(parts) > 8


def test_a_seed_decides_the_text(loaded: LoadedModel) -> None:
    first, second, other = (run(loaded, "the quick", max_new_tokens=30, seed=seed, top_k=0)[0] for seed in (1, 1, 2))
    assert first == second
    assert first.ids != other.ids


def test_without_drawing_the_likeliest_token_is_taken(loaded: LoadedModel) -> None:
    written, _ = run(loaded, "the quick", max_new_tokens=5, do_sample=False)
    ids = encode_prompt(loaded, "the quick")
    for index in written.ids:
        logits = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1]
        assert index == int(logits[: loaded.encoder.num_tokens].argmax())
        ids.append(index)


def test_rows_without_a_token_are_never_drawn(loaded: LoadedModel) -> None:
    tokens = loaded.encoder.num_tokens
    written, _ = run(loaded, "", max_new_tokens=100, seed=0, top_k=0, top_p=1.0, temperature=100.0)
    assert tokens < 640
    assert len(written.ids) > 10
    assert max(written.ids) < tokens


def test_no_more_is_written_than_the_context_has_room_for(loaded: LoadedModel) -> None:
    written, _ = run(loaded, "the", max_new_tokens=1000, seed=3, top_k=0, temperature=5.0)
    assert len(written.ids) == loaded.context_length - len(encode_prompt(loaded, "the")) or written.ended
    with pytest.raises(InputError, match="the prompt is"):
        run(loaded, "the quick " * 100)


def test_a_special_token_in_the_prompt_is_text(loaded: LoadedModel) -> None:
    assert 2 not in encode_prompt(loaded, "a</s>b")
    assert encode_prompt(loaded, "")[0] == 1


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"temperature": 0.0}, {"temperature": float("nan")}, {"temperature": float("inf")},
     {"temperature": 1e-300}, {"top_k": -1}, {"top_p": 0.0},
     {"top_p": 1.5}, {"min_p": 1.5}, {"repetition_penalty": 0.0}, {"stop": ("a", "")}, {"seed": -1}],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(options))} is"):
        check_options(GenerationOptions(**options))
    check_options(GenerationOptions())


def test_a_stop_string_ends_the_writing(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = loaded.encoder.encode(["fox jumps over the lazy dog"]).ids.tolist()
    recite(loaded, monkeypatch, ids)
    written, parts = run(loaded, "the", max_new_tokens=100, stop=("ps over", "dog"))
    assert (written.text, written.finish, written.ended) == (" fox jum", "stop_string", True)
    assert "".join(parts) == written.text
    assert len(written.ids) < len(ids)


def test_whoever_asked_may_cancel(loaded: LoadedModel) -> None:
    parts: list[str] = []
    watch = Watching(cancelled=lambda: len(parts) >= 3)
    options = GenerationOptions(max_new_tokens=60, seed=5, top_k=0, temperature=3.0)
    written = continue_text(loaded, encode_prompt(loaded, "the"), options, parts.append, watch=watch)
    assert written.finish == "cancelled"
    assert len(parts) in (3, 4)  # what was still held back comes last
    whole = continue_text(loaded, encode_prompt(loaded, "the"), options)
    assert whole.ids[: len(written.ids)] == written.ids
    assert len(whole.ids) > len(written.ids)
