"""Many prompts continued together: batches of like lengths, padded on the left."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from colossal_llama2.align.like_lengths import batches_of_like_lengths
from colossal_llama2.align.sampling import draw, uniform_numbers
from colossal_llama2.chat.generation import Continuation, GenerationOptions, generation_config
from colossal_llama2.chat.talk.reply import ReplyStream
from colossal_llama2.model.inference import LoadedModel


@dataclass(frozen=True)
class BatchPrompt:
    """A prompt to continue.

    Attributes:
        ids: at least one, and fewer than the context holds.
        stream: what makes text of the answer, and knows its end.
    """

    ids: list[int]
    stream: ReplyStream


@torch.no_grad()
def continue_in_batches(
    loaded: LoadedModel,
    prompts: Sequence[BatchPrompt],
    options: GenerationOptions,
    batch_size: int,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Continuation]:
    """Continue prompts, several at a time.

    What is drawn for a prompt depends on the seed and its number alone, so batches of another size give the same
    texts, up to what rounding does to probabilities; without drawing, texts are those of the prompts one by one.

    Args:
        loaded: the model.
        prompts: each is used up.
        options: how; a prompt that the context has less room behind gets an answer as long as that.
        batch_size: most prompts of a batch.
        progress: called with the number of prompts done after each batch.

    Returns:
        The continuations, in the order of the prompts.
    """
    seed = secrets.randbits(31) if options.seed is None else options.seed
    results: dict[int, Continuation] = {}
    room = loaded.context_length - options.max_new_tokens
    for places in _batches([len(prompt.ids) for prompt in prompts], batch_size, room):
        batch = [prompts[place] for place in places]
        limits = [min(options.max_new_tokens, loaded.context_length - len(prompt.ids)) for prompt in batch]
        _write(loaded, batch, options, limits, [(seed, place) for place in places])
        for place, prompt in zip(places, batch, strict=True):
            stream = prompt.stream
            stream.end()
            results[place] = Continuation(stream.text, stream.ids, stream.finish or "limit")
        progress(len(places))
    return [results[place] for place in range(len(prompts))]


def _batches(lengths: Sequence[int], batch_size: int, room: int) -> Iterator[list[int]]:
    """Yield numbers of prompts that share a batch.

    Beside a longer one a prompt of more than `room` tokens would be padded, and its answer pushed out of the context;
    such prompts share a batch with those of their own length alone.
    """
    fitting = [place for place, length in enumerate(lengths) if length <= room]
    for batch in batches_of_like_lengths([lengths[place] for place in fitting], batch_size):
        yield [fitting[number] for number in batch]
    tight = sorted((length, place) for place, length in enumerate(lengths) if length > room)
    for _, alike in groupby(tight, key=itemgetter(0)):
        places = [place for _, place in alike]
        yield from (places[first : first + batch_size] for first in range(0, len(places), batch_size))


def _write(
    loaded: LoadedModel,
    batch: Sequence[BatchPrompt],
    options: GenerationOptions,
    limits: list[int],
    keys: Sequence[tuple[int, int]],
) -> None:
    """Let the model write until every row has ended."""
    width = max(len(prompt.ids) for prompt in batch)
    # Padded with a token of its own: a repetition penalty looks at the padding too, where attention does not.
    input_ids = [[prompt.ids[0]] * (width - len(prompt.ids)) + prompt.ids for prompt in batch]
    mask = [[0] * (width - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in batch]
    processors = LogitsProcessorList(_drawing(options, max(limits), keys, loaded.device, width))
    config = generation_config(loaded, options, max(limits), loaded.end_token_ids)
    config.do_sample = False  # the drawing is a processor: what it leaves has one token a row
    for name in ("temperature", "top_k", "top_p", "min_p"):
        setattr(config, name, None)
    model: Any = loaded.model
    model.generate(
        input_ids=torch.tensor(input_ids, device=loaded.device),
        attention_mask=torch.tensor(mask, device=loaded.device),
        generation_config=config,
        logits_processor=processors,
        stopping_criteria=StoppingCriteriaList([_Rows([prompt.stream for prompt in batch], limits, width)]),
    )


class _Rows(StoppingCriteria):
    """What `generate` calls after each step: hands each row its token, and tells which rows have ended."""

    def __init__(self, streams: Sequence[ReplyStream], limits: Sequence[int], width: int) -> None:
        self._streams, self._limits, self._width = streams, limits, width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # type: ignore[override]
        written = input_ids.shape[1] - self._width
        over = []
        for stream, limit, token in zip(self._streams, self._limits, input_ids[:, -1].tolist(), strict=True):
            if written <= limit:
                stream.put(token)
            over.append(stream.finish is not None or written >= limit)
        return torch.tensor(over, device=input_ids.device)


def _drawing(
    options: GenerationOptions, steps: int, keys: Sequence[tuple[int, int]], device: torch.device, width: int
) -> list[LogitsProcessor]:
    """Return what draws tokens as the options say, in transformers' order; nothing where the likeliest is taken."""
    if not options.do_sample:
        return []
    uniforms = np.stack([uniform_numbers(steps, *key) for key in keys])
    processors: list[LogitsProcessor] = [TemperatureLogitsWarper(float(options.temperature))]
    if options.top_k:
        processors.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        processors.append(TopPLogitsWarper(options.top_p))
    if options.min_p:
        processors.append(MinPLogitsWarper(options.min_p))
    return [*processors, _Drawn(torch.from_numpy(uniforms).to(device), width)]


class _Drawn(LogitsProcessor):
    """Leaves one token a row, drawn by that row's number for the step.

    Args:
        uniforms: [B, steps] fp64 in [0, 1).
        width: tokens of the padded prompts.
    """

    def __init__(self, uniforms: torch.Tensor, width: int) -> None:
        self._uniforms, self._width = uniforms, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        tokens, _ = draw(scores, self._uniforms[:, input_ids.shape[1] - self._width], 1.0)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)
