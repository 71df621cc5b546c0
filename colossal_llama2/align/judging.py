"""What actor, reference, critic and reward say of answers: step 2 of PPO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from colossal_llama2.align.experience import Floats, Judged, pack
from colossal_llama2.align.frozen import AdapterOff, Forward, FrozenModel
from colossal_llama2.align.log_probs import learned_positions, token_log_probs
from colossal_llama2.align.reward_function import RewardFunction, call_reward_function
from colossal_llama2.align.rollouts import Answer
from colossal_llama2.dataset.batches import Batch
from colossal_llama2.dataset.parts import IGNORED
from colossal_llama2.dataset.prompt_set import PromptRow
from colossal_llama2.engine.session import CrossEntropies, Session
from colossal_llama2.model.scalar_head import scores
from colossal_llama2.train.stage import model_inputs


@dataclass(frozen=True)
class Judge:
    """Everyone who has a say.

    Attributes:
        actor: the policy.
        critic: gives every position a value.
        reference: the policy as it was, or its adapter switched off.
        reward_model: scores whole answers, or None.
        reward_function: the user's own, or None.
        tokenizer: ids to text, for the function.
        temperature: the sampler's.
        micro_batch_size: answers a rank looks at at a time.
    """

    actor: Session
    critic: Session
    reference: FrozenModel | AdapterOff
    reward_model: FrozenModel | None
    reward_function: RewardFunction | None
    tokenizer: Any
    temperature: float
    micro_batch_size: int

    def judge(self, prompts: Sequence[PromptRow], answers: Sequence[Answer]) -> list[Judged]:
        """Have this rank's answers judged; every rank has as many."""
        micro_batches = list(self._micro_batches(prompts, answers))
        with evaluating(self.actor, self.critic):
            policy = self._log_probs(self.actor.infer, micro_batches, self.actor.cross_entropies)
            values = [
                one for batch in micro_batches for one in _of_answers(self._values(self.critic.infer, batch), batch)
            ]
            plain = self.actor.cross_entropies if isinstance(self.reference, AdapterOff) else None
            with self.reference.ready() as forward:
                reference = self._log_probs(forward, micro_batches, plain)
        model_scores = self._model_scores(micro_batches)
        function_scores = self._function_scores(prompts, answers)
        return [
            Judged(prompt.ids, answer, *said)
            for prompt, answer, *said in zip(
                prompts, answers, policy, reference, values, model_scores, function_scores, strict=True
            )
        ]

    def _micro_batches(self, prompts: Sequence[PromptRow], answers: Sequence[Answer]) -> Iterator[Batch]:
        sequences = [(prompt.ids, answer.ids) for prompt, answer in zip(prompts, answers, strict=True)]
        for begin in range(0, len(sequences), self.micro_batch_size):
            yield pack(sequences[begin : begin + self.micro_batch_size])

    def _log_probs(
        self, forward: Forward, micro_batches: Sequence[Batch], cross_entropies: CrossEntropies | None
    ) -> list[Floats]:
        said: list[Floats] = []
        for batch in micro_batches:
            logits = forward(**model_inputs(batch)).logits
            labels = batch.labels.to(logits.device)
            log_probs = token_log_probs(logits, labels, cross_entropies, self.temperature).log_probs
            said += _of_answers(log_probs, batch)
        return said

    def _values(self, forward: Forward, batch: Batch) -> torch.Tensor:
        values = forward(**model_inputs(batch)).values.reshape(-1)
        # the state in which a token is chosen ends with the token before it
        return values[learned_positions(batch.labels).to(values.device) - 1]

    def _model_scores(self, micro_batches: Sequence[Batch]) -> list[float]:
        found: list[float] = []
        if self.reward_model is None:
            return [0.0] * sum(len(batch.document_lengths) for batch in micro_batches)
        with self.reward_model.ready() as forward:
            for batch in micro_batches:
                said = forward(**model_inputs(batch)).values
                ends = torch.from_numpy(np.cumsum(batch.document_lengths) - 1)
                found += scores(said, ends).tolist()
        return found

    def _function_scores(self, prompts: Sequence[PromptRow], answers: Sequence[Answer]) -> list[float]:
        if self.reward_function is None:
            return [0.0] * len(answers)
        return call_reward_function(
            self.reward_function,
            [prompt.text for prompt in prompts],
            [text_of(self.tokenizer, answer) for answer in answers],
            [prompt.record for prompt in prompts],
        )


def text_of(tokenizer: Any, answer: Answer) -> str:
    """Return an answer as a text, without its end token."""
    ids = answer.ids[: len(answer.ids) - answer.ended].tolist()
    return str(tokenizer.decode(ids, skip_special_tokens=True))


@contextmanager
def evaluating(*sessions: Session) -> Iterator[None]:
    """Inside, the sessions' models drop nothing out."""
    for session in sessions:
        session.model.eval()
    try:
        yield
    finally:
        for session in sessions:
            session.model.train()


def _of_answers(values: torch.Tensor, batch: Batch) -> list[Floats]:
    """Divide [N] numbers of the tokens of answers among the answers of a packed row."""
    learned = (batch.labels[0] != IGNORED).int()
    ends = np.cumsum(batch.document_lengths)
    lengths = [int(learned[end - length : end].sum()) for end, length in zip(ends, batch.document_lengths, strict=True)]
    return [part.cpu().numpy().astype(np.float32) for part in values.float().split(lengths)]
