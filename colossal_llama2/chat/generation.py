"""A prompt in, its continuation out, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from colossal_llama2.chat.talk.reply import Finish, ReplyStream
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
    min_p: float = 0.0
    """Draw from tokens at least this many times as likely as the likeliest; 0 for no such limit."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that stand in the text already become less likely."""
    seed: int | None = None
    """The same seed gives the same text (default: another text every time)."""
    stop: tuple[str, ...] = ()
    """Texts that end what is written, and are left out of it."""


@dataclass(frozen=True)
class Continuation:
    """What was written.

    Attributes:
        text: all of it, as it was streamed.
        ids: its tokens, the end token left out; with a stop string those up to the one that completed it.
        finish: what ended it: an end token, a stop string, the limit, or whoever asked.
    """

    text: str
    ids: list[int]
    finish: Finish | Literal["limit", "cancelled"]

    @property
    def ended(self) -> bool:
        """Whether the model came to an end by itself, or wrote a stop string."""
        return self.finish in ("end_token", "stop_string")


def check_options(options: GenerationOptions) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        InputError: naming the flag.
    """
    wrong = {
        "max_new_tokens": options.max_new_tokens < 1 and "give at least 1",
        # Divided by less, or by infinity, logits leave what float32 holds, and probabilities would be no numbers.
        "temperature": not 1e-5 <= options.temperature < math.inf
        and "give a positive number, 0.00001 at least, or --no_do_sample",
        "top_k": options.top_k < 0 and "give 0 or more",
        "top_p": not 0 < options.top_p <= 1 and "give a number above 0 and up to 1",
        "min_p": not 0 <= options.min_p <= 1 and "give a number from 0 to 1",
        "repetition_penalty": not options.repetition_penalty > 0 and "give a positive number; 1 changes nothing",
        "stop": "" in options.stop and "an empty text stands everywhere: leave it out",
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


def start_reply(loaded: LoadedModel, prompt_ids: list[int], options: GenerationOptions) -> ReplyStream:
    """Return the stream of a continuation that is no reply of a chat."""
    return ReplyStream(loaded.tokenizer, prompt_ids, loaded.end_token_ids, options.stop)


@dataclass(frozen=True)
class Watching:
    """What accompanies the writing.

    Attributes:
        draft: a smaller model with the same tokens that writes ahead; what it got right costs one step of the model.
        cancelled: asked after every step; once it says yes nothing more is written.
    """

    draft: Any = None
    cancelled: Callable[[], bool] = lambda: False


@torch.no_grad()
def continue_text(
    loaded: LoadedModel,
    prompt_ids: list[int],
    options: GenerationOptions,
    emit: Callable[[str], object] = lambda part: None,
    stream: ReplyStream | None = None,
    watch: Watching | None = None,
) -> Continuation:
    """Continue a prompt, handing over text as soon as it is certain.

    Args:
        loaded: the model.
        prompt_ids: see `encode_prompt`, or of a `ChatFormat`.
        options: how; `max_new_tokens` is cut to the room that the context has (see `room_after`).
        emit: called with each new part of the text.
        stream: what makes text of the ids and knows where they end (default: that of `start_reply`).
        watch: a draft model, and whether somebody cancels.

    Returns:
        The continuation; the parts emitted, joined, are its text.

    Raises:
        InputError: an option is out of range, or the prompt fills the context.
    """
    check_options(options)
    room = room_after(loaded, prompt_ids)
    stream = stream or start_reply(loaded, prompt_ids, options)
    watch = watch or Watching()
    if options.seed is not None:
        torch.manual_seed(options.seed)
    input_ids = torch.tensor([prompt_ids], device=loaded.device)
    writing = _Writing(stream, emit, watch.cancelled, len(prompt_ids))
    model: Any = loaded.model
    model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        generation_config=generation_config(loaded, options, min(options.max_new_tokens, room), stream.end_token_ids),
        stopping_criteria=StoppingCriteriaList([writing]),
        assistant_model=watch.draft,
    )
    writing.hand_over(stream.end())
    return Continuation(stream.text, stream.ids, stream.finish or ("cancelled" if writing.was_cancelled else "limit"))


class _Writing(StoppingCriteria):
    """What `generate` calls after each step, with the prompt and all tokens so far: one more, several with a draft."""

    def __init__(
        self, stream: ReplyStream, emit: Callable[[str], object], cancelled: Callable[[], bool], num_seen: int
    ) -> None:
        self.was_cancelled = False
        self._stream, self._emit, self._cancelled, self._num_seen = stream, emit, cancelled, num_seen

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # type: ignore[override]
        for index in input_ids[0, self._num_seen :].tolist():
            self.hand_over(self._stream.put(index))
        self._num_seen = input_ids.shape[1]
        self.was_cancelled = self._stream.finish is None and self._cancelled()
        over = self._stream.finish is not None or self.was_cancelled
        return torch.tensor([over], device=input_ids.device)

    def hand_over(self, part: str) -> None:
        if part:
            self._emit(part)


def generation_config(
    loaded: LoadedModel, options: GenerationOptions, max_new_tokens: int, end_token_ids: Collection[int]
) -> Any:
    """Return the options as transformers' `GenerationConfig`; stop strings are not in it, see `ReplyStream`.

    Args:
        loaded: the model.
        options: how.
        max_new_tokens: most tokens to write, which the context has room for.
        end_token_ids: tokens that end what is written.
    """
    from transformers import GenerationConfig

    encoder, model = loaded.encoder, loaded.model
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ends = sorted(end_token_ids)
    drawing = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "min_p")}
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
