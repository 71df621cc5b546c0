"""Prompts in, sampled answers out: batches of like lengths, a key-value cache, and rows that leave when they end.

The policy is sampled from as it is: temperature, and neither top-k nor top-p. Those cut tokens away, and which ones
depends on the weights: after an update the policy would give probability 0 to tokens that were drawn, or the other way
round, and the ratio of the two that PPO is about would not exist. Temperature divides the logits wherever
log-probabilities are taken, here and in training, so that both speak of the same distribution.

The module that is trained writes the answers, with the weights where they lie: nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from colossal_llama2.align.like_lengths import batches_of_like_lengths
from colossal_llama2.align.sampling import draw, uniform_numbers
from colossal_llama2.engine import ranks
from colossal_llama2.engine.master_weights import boosted_module
from colossal_llama2.engine.session import Session

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: longest answer, its end token included.
        temperature: what logits are divided by.
        end_token_ids: tokens that end an answer.
        batch_size: most prompts a rank answers at a time.
        pad_token_id: stands before shorter prompts of a batch, where nobody looks.
    """

    max_new_tokens: int
    temperature: float
    end_token_ids: frozenset[int]
    batch_size: int
    pad_token_id: int = 0


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer.

    Attributes:
        ids: [P] int32, at least one token.
        keys: decide what is drawn, together with the weights: no two answers of a run have the same.
    """

    ids: Ints
    keys: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What was drawn.

    Attributes:
        ids: [A] int32, at least one token, the end token last if there is one.
        log_probs: [A] fp32, in nats, of the tokens under the distribution they were drawn from.
        ended: the last token is an end token; otherwise the answer was cut off.
    """

    ids: Ints
    log_probs: Floats
    ended: bool


class Generator(Protocol):
    """Answers prompts with the present weights of a policy."""

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer this rank's prompts, in their order; every rank calls it at the same point."""
        ...


@dataclass(frozen=True)
class ModuleGenerator:
    """Writes answers with the very module that a session trains."""

    session: Session
    sampling: Sampling

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer this rank's prompts, in their order; every rank calls it at the same point."""
        answers: list[Answer | None] = [None] * len(prompts)
        with writing_mode(self.session), torch.no_grad():
            forward = _InStep(self.session)
            for places in batches_of_like_lengths([len(prompt.ids) for prompt in prompts], self.sampling.batch_size):
                batch = _RowsUnderWay.of([prompts[place] for place in places], self.sampling)
                for place, answer in zip(places, batch.write(forward), strict=True):
                    answers[place] = answer
            forward.wait_for_others()
        return [answer for answer in answers if answer is not None]


@contextmanager
def writing_mode(session: Session) -> Iterator[None]:
    """Inside, the model attends through torch's SDPA with a padding mask and a cache, and drops nothing out.

    The attention by documents that training uses knows no cache. Layers look the function up by its name at every
    call, so changing the name is all there is to a switch.
    """
    module: Any = boosted_module(session.model)
    kept = module.config._attn_implementation
    module.config._attn_implementation = "sdpa"
    module.eval()
    try:
        yield
    finally:
        module.config._attn_implementation = kept
        module.train()


class _InStep:
    """Calls the model; where a forward pass gathers weights from all ranks, as often on one rank as on another."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, **inputs: Any) -> tuple[torch.Tensor, Any]:
        """Return the logits [B, V] of the last position, and the cache."""
        if self._session.forward_is_collective:
            ranks.sum_over_ranks(1.0)
        output = self._session.infer(**inputs, use_cache=True, logits_to_keep=1)
        return self._session.whole_logits(output.logits[:, -1]), output.past_key_values

    def wait_for_others(self) -> None:
        """Take part in the forward passes of ranks that still write."""
        if not self._session.forward_is_collective:
            return
        one = torch.zeros((1, 1), dtype=torch.int64, device=ranks.device())
        while ranks.sum_over_ranks(0.0)[0]:
            self._session.infer(input_ids=one, use_cache=False)


@dataclass
class _RowsUnderWay:
    """A batch of answers that are being written.

    Attributes:
        sampling: how.
        input_ids: [B, S] the prompts, padded on the left.
        mask: [B, S] 1 where a token stands.
        uniforms: [B, max_new_tokens] what decides the draws.
        tokens: of each answer, so far.
        log_probs: of each.
    """

    sampling: Sampling
    input_ids: torch.Tensor
    mask: torch.Tensor
    uniforms: torch.Tensor
    tokens: list[list[int]] = field(default_factory=list)
    log_probs: list[list[float]] = field(default_factory=list)

    @classmethod
    def of(cls, prompts: Sequence[Prompt], sampling: Sampling) -> _RowsUnderWay:
        width = max(len(prompt.ids) for prompt in prompts)
        input_ids = np.full((len(prompts), width), sampling.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(prompts), width), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt.ids) :] = prompt.ids
            mask[row, width - len(prompt.ids) :] = 1
        uniforms = np.stack([uniform_numbers(sampling.max_new_tokens, *prompt.keys) for prompt in prompts])
        ids, ones, numbers = (torch.from_numpy(array).to(ranks.device()) for array in (input_ids, mask, uniforms))
        return cls(sampling, ids, ones, numbers, [[] for _ in prompts], [[] for _ in prompts])

    def write(self, forward: Callable[..., tuple[torch.Tensor, Any]]) -> list[Answer]:
        """Draw until every row has ended."""
        ends = torch.tensor(sorted(self.sampling.end_token_ids), device=self.input_ids.device)
        rows = list(range(len(self.tokens)))  # those that are still written
        mask, inputs, cache = self.mask, self.input_ids, None
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        for step in range(self.sampling.max_new_tokens):
            logits, cache = forward(
                input_ids=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache
            )
            drawn, log_probs = draw(logits, self.uniforms[rows, step], self.sampling.temperature)
            for row, token, log_prob in zip(rows, drawn.tolist(), log_probs.tolist(), strict=True):
                self.tokens[row].append(token)
                self.log_probs[row].append(log_prob)
            live = (~torch.isin(drawn, ends)).nonzero()[:, 0]
            if not len(live):
                break
            positions = positions[:, -1:] + 1
            if len(live) < len(rows):  # an answer that has ended costs nothing from here on
                rows = [rows[place] for place in live.tolist()]
                cache.batch_select_indices(live)
                mask, positions, drawn = mask[live], positions[live], drawn[live]
            mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
            inputs = drawn[:, None]
        return [self._answer(row) for row in range(len(self.tokens))]

    def _answer(self, row: int) -> Answer:
        ids = np.array(self.tokens[row], dtype=np.int32)
        ended = int(ids[-1]) in self.sampling.end_token_ids
        return Answer(ids, np.array(self.log_probs[row], dtype=np.float32), ended)
