"""Texts of one model, written together: new ones join between two steps, finished ones leave."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from colossal_llama2.chat.serving.batch_cache import RowsCache
from colossal_llama2.chat.serving.sampling import Drawer, choose_tokens
from colossal_llama2.model.inference import LoadedModel


class Writing:
    """One text in the batch.

    Attributes:
        prompt_ids: what it goes on from.
        drawer: how its tokens are chosen.
        written: its tokens so far.
    """

    def __init__(self, prompt_ids: Sequence[int], drawer: Drawer) -> None:
        self.prompt_ids = list(prompt_ids)
        self.drawer = drawer
        self.written: list[int] = []


class _Reading:
    """A prompt that is being read, for one text or for several that go on from it."""

    def __init__(self, writings: Sequence[Writing]) -> None:
        self.writings = list(writings)
        self.cache = DynamicCache()
        self.place = 0


class Batch:
    """The running texts of one model, and the prompts that are being read.

    A prompt is read alone, in chunks, so that a long one does not hold up the running texts; then its keys and values
    join theirs. A step is one forward pass that gives every running text its next token. In exact arithmetic a text
    does not depend on its neighbours.

    Args:
        loaded: the model.
        prefill_tokens: most tokens of prompts that are read between two steps.
    """

    def __init__(self, loaded: LoadedModel, prefill_tokens: int) -> None:
        self._loaded, self._prefill_tokens = loaded, prefill_tokens
        self._model: Any = loaded.model
        takes = inspect.signature(self._model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._reading: deque[_Reading] = deque()
        self._running: list[Writing] = []
        self._cache = RowsCache()
        self.steps = 0

    @property
    def size(self) -> int:
        """Texts that are read or written now."""
        return len(self._running) + sum(len(reading.writings) for reading in self._reading)

    def add(self, writings: Sequence[Writing]) -> None:
        """Begin texts that have the same prompt."""
        self._reading.append(_Reading(writings))

    @torch.inference_mode()
    def remove(self, writing: Writing) -> None:
        """Take a text out, at whatever point it is; nothing happens where it is not in."""
        for reading in self._reading:
            if writing in reading.writings:
                reading.writings.remove(writing)
                if not reading.writings:
                    self._reading.remove(reading)
                return
        if writing in self._running:
            row = self._running.index(writing)
            self._running[row] = self._running[-1]
            self._running.pop()
            self._cache.leave(row)

    def clear(self) -> None:
        """Drop everything, after a step that failed."""
        self._reading.clear()
        self._running.clear()
        self._cache = RowsCache()

    @torch.inference_mode()
    def read(self) -> list[tuple[Writing, int]]:
        """Read on in the prompts; return the first tokens of the texts whose prompts are read."""
        first: list[tuple[Writing, int]] = []
        room = self._prefill_tokens
        while self._reading and room > 0:
            reading = self._reading[0]
            prompt = reading.writings[0].prompt_ids
            part = prompt[reading.place : reading.place + room]
            logits = self._forward([part], reading.cache)
            reading.place += len(part)
            room -= len(part)
            if reading.place == len(prompt):
                self._reading.popleft()
                first += self._begin(reading, logits)
        return first

    @torch.inference_mode()
    def step(self) -> list[tuple[Writing, int]]:
        """Write one token of every running text, and return them."""
        if not self._running:
            return []
        inputs = self._cache.inputs(self._loaded.device)
        logits = self._forward([[writing.written[-1]] for writing in self._running], self._cache, **inputs)
        self._cache.grow()
        self.steps += 1
        return self._choose(logits, self._running)

    def _begin(self, reading: _Reading, logits: torch.Tensor) -> list[tuple[Writing, int]]:
        self._cache.join(reading.cache, len(reading.writings))
        self._running += reading.writings
        return self._choose(logits.expand(len(reading.writings), -1).clone(), reading.writings)

    def _choose(self, logits: torch.Tensor, writings: Sequence[Writing]) -> list[tuple[Writing, int]]:
        tokens = choose_tokens(logits, [writing.drawer for writing in writings])
        for writing, token in zip(writings, tokens, strict=True):
            writing.written.append(token)
        return list(zip(writings, tokens, strict=True))

    def _forward(self, ids: list[list[int]], cache: Any, **inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, V] of the next token of each row, in float32, tokens that are none left out."""
        input_ids = torch.tensor(ids, device=self._loaded.device)
        output = self._model(input_ids=input_ids, past_key_values=cache, use_cache=True, **inputs, **self._last_only)
        logits: torch.Tensor = output.logits[:, -1].float()
        # Rows that fill the embedding up to a round number stand for no token.
        logits[:, self._loaded.encoder.num_tokens :] = -torch.inf
        if not bool(logits.isfinite().any(-1).all()) or bool(logits.isnan().any()):
            raise FloatingPointError("the model gave something that is no number")
        return logits
