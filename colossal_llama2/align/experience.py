"""What a rollout taught: answers with what actor, reference, critic and reward said of them, and the advantages.

Every rank holds the experience of all ranks: a few arrays of a number a token, thousandfold smaller than the models. So
minibatches are drawn from the whole rollout, advantages are whitened over the whole of it, and neither depends on how
many ranks there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence

from colossal_llama2.align import ppo_losses
from colossal_llama2.align.kl_estimates import KlEstimator, kl_estimates
from colossal_llama2.align.log_probs import answer_weights
from colossal_llama2.align.rollouts import Answer, Ints
from colossal_llama2.dataset.batches import Batch, collate
from colossal_llama2.dataset.order import seeded_permutation
from colossal_llama2.dataset.parts import IGNORED, Row

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Judged:
    """An answer and what was said of it, before anything is learned from it.

    Attributes:
        prompt: [P] int32.
        answer: the [A] tokens drawn.
        log_probs: [A] fp32, of the policy, from the pass that training makes.
        reference_log_probs: [A] fp32, of the frozen reference.
        values: [A] fp32, of the critic, each from the position before the token.
        model_score: of the reward model, 0 without one.
        function_score: of the reward function, 0 without one.
    """

    prompt: Ints
    answer: Answer
    log_probs: Floats
    reference_log_probs: Floats
    values: Floats
    model_score: float
    function_score: float


@dataclass(frozen=True)
class Shaping:
    """How rewards become advantages: the numbers of the papers.

    Attributes:
        kl_estimator: of the KL per token.
        gamma: discount.
        lam: lambda of GAE.
        whiten: advantages get mean zero and variance one over the whole rollout.
    """

    kl_estimator: KlEstimator = "k1"
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True


@dataclass(frozen=True)
class Experience:
    """A rollout of all ranks, ready to be learned from.

    Attributes:
        judged: A answers.
        scores: [A] fp32, what each answer is rewarded with.
        kl: [A] lists of fp32, estimates per token, in nats.
        rewards: [A] lists, shaped.
        advantages: [A] lists.
        returns: [A] lists.
    """

    judged: Sequence[Judged]
    scores: torch.Tensor
    kl: list[torch.Tensor]
    rewards: list[torch.Tensor]
    advantages: list[torch.Tensor]
    returns: list[torch.Tensor]

    def __len__(self) -> int:
        """Number of answers."""
        return len(self.judged)


@dataclass(frozen=True)
class PpoBatch:
    """A micro-batch of answers in one packed row.

    Attributes:
        rows: the sequences behind one another, labels on the answers' tokens alone.
        old_log_probs: [N] fp32, a number a token of the answers, in order.
        old_values: [N].
        advantages: [N].
        returns: [N].
        weights: [N], what each token weighs.
    """

    rows: Batch
    old_log_probs: torch.Tensor
    old_values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    weights: torch.Tensor


def shape(judged: Sequence[Judged], scores: torch.Tensor, kl_coef: float, shaping: Shaping) -> Experience:
    """Turn scores into rewards per token, and those into advantages and returns.

    Args:
        judged: A answers.
        scores: [A], what each is rewarded with at its last token.
        kl_coef: beta.
        shaping: see there.
    """
    log_probs, reference, values = (
        pad_sequence([torch.from_numpy(getattr(one, name)) for one in judged], batch_first=True)
        for name in ("log_probs", "reference_log_probs", "values")
    )
    lengths = torch.tensor([len(one.answer.ids) for one in judged])
    mask = torch.arange(log_probs.shape[1])[None] < lengths[:, None]
    kl = kl_estimates(log_probs, reference, shaping.kl_estimator)
    rewards = ppo_losses.shaped_rewards(scores, kl, mask, kl_coef)
    advantages, returns = ppo_losses.gae(rewards, values, mask, shaping.gamma, shaping.lam)
    if shaping.whiten:
        advantages = ppo_losses.whiten(advantages, mask, ppo_losses.masked_moments(advantages, mask))
    ragged = (
        [row[:length] for row, length in zip(padded, lengths.tolist(), strict=True)]
        for padded in (kl, rewards, advantages, returns)
    )
    return Experience(judged, scores, *ragged)


def pack(sequences: Sequence[tuple[Ints, Ints]], pad_token_id: int = 0) -> Batch:
    """Put prompts with their answers behind one another in one row; labels lie on the answers.

    Args:
        sequences: prompt and answer of each, at least one token each.
        pad_token_id: stands behind a row of a single token.
    """
    input_ids = np.concatenate([part for sequence in sequences for part in sequence])
    labels = [np.concatenate([np.full(len(prompt), IGNORED, np.int32), answer]) for prompt, answer in sequences]
    lengths = np.array([len(prompt) + len(answer) for prompt, answer in sequences], dtype=np.int32)
    return collate([Row(input_ids, np.concatenate(labels), lengths)], pad_token_id)


def take(experience: Experience, numbers: Sequence[int], of_answers: bool) -> PpoBatch:
    """Make a micro-batch of these answers.

    Args:
        experience: of a rollout.
        numbers: of the answers.
        of_answers: every answer weighs the same, not every token.
    """
    chosen = [experience.judged[number] for number in numbers]
    lengths = torch.tensor([len(one.answer.ids) for one in chosen])
    owners = torch.repeat_interleave(torch.arange(len(chosen)), lengths)
    return PpoBatch(
        rows=pack([(one.prompt, one.answer.ids) for one in chosen]),
        old_log_probs=torch.from_numpy(np.concatenate([one.log_probs for one in chosen])),
        old_values=torch.from_numpy(np.concatenate([one.values for one in chosen])),
        advantages=torch.cat([experience.advantages[number] for number in numbers]),
        returns=torch.cat([experience.returns[number] for number in numbers]),
        weights=answer_weights(owners, lengths) if of_answers else torch.ones(len(owners)),
    )


def total_weight(experience: Experience, numbers: Sequence[int], of_answers: bool) -> float:
    """Return what these answers weigh together: their number, or that of their tokens."""
    return float(len(numbers) if of_answers else sum(len(experience.judged[number].answer.ids) for number in numbers))


def minibatches(num_answers: int, num_minibatches: int, *keys: int) -> list[list[int]]:
    """Divide a rollout's answers into minibatches of equal size, in an order that the keys decide."""
    order = seeded_permutation(num_answers, *keys).tolist()
    size = num_answers // num_minibatches
    return [order[begin : begin + size] for begin in range(0, size * num_minibatches, size)]


def share_of_rank(numbers: Sequence[int], lengths: Sequence[int], rank: int, world_size: int) -> list[int]:
    """Return a rank's share of a minibatch, longest first: the ranks' shares have about as many tokens.

    Args:
        numbers: of the answers, as many as a multiple of `world_size`.
        lengths: tokens of every answer of the rollout, prompt included.
        rank: among the data-parallel ranks.
        world_size: number of them.
    """
    assert len(numbers) % world_size == 0, "ranks make as many forward passes as one another"
    return sorted(numbers, key=lambda number: (-lengths[number], number))[rank::world_size]
