"""A prompt in, its continuation out, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from colossal_llama2.chat.streaming import TextStream
from colossal_llama2.errors import InputError
from colossal_llama2.model.inference import LoadedModel


@dataclass(frozen=True)
class GenerationOptions:
    """How a text is continued."""

    max_new_tokens: int = 256
    """Most tokens to write."""
    do_sample: bool = True
    """Draw each token from the model's distribution; --no_do_sample always takes the likeliest."""
    temperature: float = 0.7
    """Below 1 the likely tokens become likelier, above 1 all become more alike; used when drawing."""
    top_k: int = 50
    """Draw from this many likeliest tokens; 0 for no such limit."""
    top_p: float = 0.95
    """Draw from the fewest likeliest tokens that together reach this probability; 1 for no such limit."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that stand in the text already become less likely."""
    seed: int | None = None
    """The same seed gives the same text (default: another text every time)."""


@dataclass(frozen=True)
class Continuation:
    """What was written.

    Attributes:
        text: all of it, as it was streamed.
        ids: its tokens, the end-of-text token left out.
        ended: whether the model came to an end by itself.
    """

    text: str
    ids: list[int]
    ended: bool


def check_options(options: GenerationOptions) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        InputError: naming the flag.
    """
    wrong = {
        "max_new_tokens": options.max_new_tokens < 1 and "give at least 1",
        "temperature": not options.temperature > 0 and "give a positive number, or --no_do_sample",
        "top_k": options.top_k < 0 and "give 0 or more",
        "top_p": not 0 < options.top_p <= 1 and "give a number above 0 and up to 1",
        "repetition_penalty": not options.repetition_penalty > 0 and "give a positive number; 1 changes nothing",
        "seed": options.seed is not None and options.seed < 0 and "give 0 or more",
    }
    for name, remedy in wrong.items():
        if remedy:
            raise InputError(f"--{name} is {getattr(options, name)}", remedy=str(remedy))


def encode_prompt(loaded: LoadedModel, prompt: str) -> list[int]:
    """Return the ids the model is given: a document's start and the prompt, encoded as the corpus was."""
    return [loaded.document_start, *loaded.encoder.encode([prompt]).ids.tolist()]


def room_after(loaded: LoadedModel, prompt_ids: list[int]) -> int:
    """Return how many tokens the model's context still has room for.

    Raises:
        InputError: none.
    """
    room = loaded.context_length - len(prompt_ids)
    if room < 1:
        raise InputError(
            f"the prompt is {len(prompt_ids)} tokens long and the model's context {loaded.context_length}",
            remedy="shorten the prompt",
        )
    return room


@torch.no_grad()
def continue_text(
    loaded: LoadedModel,
    prompt_ids: list[int],
    options: GenerationOptions,
    emit: Callable[[str], object] = lambda part: None,
) -> Continuation:
    """Continue a prompt, handing over text as soon as it is certain.

    Args:
        loaded: the model.
        prompt_ids: see `encode_prompt`.
        options: how; `max_new_tokens` is cut to the room that the context has (see `room_after`).
        emit: called with each new part of the text.

    Returns:
        The continuation; the parts emitted, joined, are its text.

    Raises:
        InputError: an option is out of range, or the prompt fills the context.
    """
    check_options(options)
    room = room_after(loaded, prompt_ids)
    if options.seed is not None:
        torch.manual_seed(options.seed)
    streamer = _Streamer(TextStream(loaded.tokenizer, prompt_ids), emit)
    input_ids = torch.tensor([prompt_ids], device=loaded.device)
    model: Any = loaded.model
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        generation_config=_configuration(loaded, options, min(options.max_new_tokens, room)),
        streamer=streamer,
    )
    ids = output[0, len(prompt_ids) :].tolist()
    ended = bool(ids) and ids[-1] in _end_tokens(loaded)
    return Continuation("".join(streamer.parts), ids[:-1] if ended else ids, ended)


class _Streamer(BaseStreamer):
    """What `generate` calls with the prompt, then with each token, then at the end."""

    def __init__(self, stream: TextStream, emit: Callable[[str], object]) -> None:
        self.parts: list[str] = []
        self._stream, self._emit = stream, emit
        self._past_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._past_prompt:
            for index in value.reshape(-1).tolist():
                self._hand_over(self._stream.put(index))
        self._past_prompt = True

    def end(self) -> None:
        self._hand_over(self._stream.end())

    def _hand_over(self, part: str) -> None:
        if part:
            self.parts.append(part)
            self._emit(part)


def _end_tokens(loaded: LoadedModel) -> list[int]:
    """Return the tokens that end a text: the tokenizer's eos, and those the model's own generation settings name."""
    own = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
    named = [loaded.encoder.eos_token_id, *(own if isinstance(own, list) else [own])]
    return sorted({int(index) for index in named if index is not None})


def _configuration(loaded: LoadedModel, options: GenerationOptions, max_new_tokens: int) -> Any:
    from transformers import GenerationConfig

    encoder, model = loaded.encoder, loaded.model
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ends = _end_tokens(loaded)
    drawing = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=options.do_sample,
        repetition_penalty=options.repetition_penalty,
        bos_token_id=encoder.bos_token_id,
        eos_token_id=ends or None,
        # One text at a time is never padded; naming a token keeps transformers from complaining.
        pad_token_id=encoder.pad_token_id if encoder.pad_token_id is not None else (ends or [0])[0],
        # Rows that fill the embedding up to a round number stand for no token.
        suppress_tokens=list(range(encoder.num_tokens, rows)) or None,
        use_cache=True,
        **(drawing if options.do_sample else {}),
    )
