"""Group relative policy optimisation in the terms of PPO's loop: several answers a prompt, and no critic.

Shao et al., arXiv 2402.03300. The loop, the rollouts, the judging and the figures are PPO's (`ppo.train_ppo`); what
differs is here: every prompt is asked several times, an answer's advantage is how much better it is than the others to
its prompt, the same at each of its tokens, and the KL to the reference is a part of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from colossal_llama2.align.experience import Experience, minibatches, pack, share_of_rank, total_weight
from colossal_llama2.align.frozen import Forward
from colossal_llama2.align.grpo_losses import TokenTriple, group_advantages, grpo
from colossal_llama2.align.judging import Judge
from colossal_llama2.align.log_probs import answer_weights, learned_positions, token_log_probs
from colossal_llama2.align.ppo_learning import Learner, Tally
from colossal_llama2.align.ppo_losses import DEFAULT_CLIP, PolicyClip
from colossal_llama2.align.trouble import Figures, TroubleWatch
from colossal_llama2.dataset.batches import Batch
from colossal_llama2.dataset.prompt_set import PromptSet
from colossal_llama2.engine.session import CrossEntropies, Objective
from colossal_llama2.train.run_log import RunLog, StepMetrics
from colossal_llama2.train.stage import model_inputs
from colossal_llama2.train.stopping import NonFiniteError

_OF_A_CRITIC = frozenset(
    ("value", "return", "explained_variance", "value_loss", "value_clip_share", "value_error", "reward_shaped")
)


class GroupedPrompts(PromptSet):
    """A set of prompts each of which is asked several times on end; positions and numbers count answers.

    Args:
        prompts: the set.
        group_size: answers to each prompt.
    """

    def __init__(self, prompts: PromptSet, group_size: int) -> None:
        vars(self).update(vars(prompts))
        self.group_size = group_size
        self.num_prompts = prompts.num_prompts * group_size

    def take(self, seed: int, epoch: int, consumed: int, count: int) -> list[tuple[int, int]]:
        """Return the next prompts from a position on, each as often as it is asked."""
        size = self.group_size
        assert consumed % size == 0, "a group is not divided"
        assert count % size == 0, "a group is not divided"
        return [one for one in super().take(seed, epoch, consumed // size, count // size) for _ in range(size)]


class CriticlessJudge(Judge):
    """A judge that nobody tells a value."""

    def _values(self, forward: Forward, batch: Batch) -> torch.Tensor:
        return torch.zeros(len(learned_positions(batch.labels)))


class CriticlessTrouble(TroubleWatch):
    """The rules, less the one on a critic."""

    def look(self, figures: Figures) -> list[str]:
        """See `TroubleWatch`."""
        return super().look({**figures, "value_error": 1.0})  # one that never grows keeps its rule silent


class CriticlessLog(RunLog):
    """A log without the figures of a critic."""

    def step(self, metrics: StepMetrics) -> None:
        """See `RunLog`."""
        figures = {name: value for name, value in metrics.figures.items() if name not in _OF_A_CRITIC}
        super().step(replace(metrics, figures=figures))


@dataclass(frozen=True)
class GrpoBatch:
    """A micro-batch of answers in one packed row.

    Attributes:
        rows: the sequences behind one another, labels on the answers' tokens alone.
        old: [N] fp32, log-probabilities of the policy that sampled, a number a token of the answers, in order.
        reference: [N] of the frozen one.
        advantages: [N].
        weights: [N], what each token weighs.
    """

    rows: Batch
    old: torch.Tensor
    reference: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class GrpoLearner(Learner):
    """The policy and how it learns from groups; `critic` is the policy itself, and never asked.

    Attributes:
        group_size: answers to each prompt, which stand on end in an experience.
        kl_coef: weight of the KL in the loss.
        clip: how far the ratio may go.
        divide_by_std: see `group_advantages`.
    """

    group_size: int = 8
    kl_coef: float = 0.04
    clip: PolicyClip = DEFAULT_CLIP
    divide_by_std: bool = True

    def learn(self, experience: Experience, step: int, actor_learns: bool) -> Tally:
        """Make every update of a rollout; every rank holds the same experience."""
        assert actor_learns, "there is no critic to warm up"
        tally, learning = Tally(), self.learning
        groups = torch.arange(len(experience)) // self.group_size
        advantages = group_advantages(experience.scores, groups, self.divide_by_std)
        for epoch in range(learning.epochs):
            for numbers in minibatches(len(experience), learning.minibatches, learning.seed, step, epoch):
                self._learn_from(experience, advantages, numbers, tally)
        return tally

    def _learn_from(
        self, experience: Experience, advantages: torch.Tensor, numbers: Sequence[int], tally: Tally
    ) -> None:
        total = total_weight(experience, numbers, self.learning.of_answers)
        batches = list(self._batches(experience, advantages, numbers))
        tally.updates += 1
        tally.actor_updates += 1
        self.actor.learn(batches, self._objective(total, tally), self.actor.mesh.data_size)
        outcome = self.actor.step()
        if outcome.skipped:
            tally.skipped += 1
        elif not math.isfinite(outcome.grad_norm):
            raise NonFiniteError("the gradients of the policy are not finite and have spoiled its weights")
        else:
            tally.actor_grad_norm += outcome.grad_norm

    def _batches(self, experience: Experience, advantages: torch.Tensor, numbers: Sequence[int]) -> Iterator[GrpoBatch]:
        mesh, size = self.actor.mesh, self.learning.micro_batch_size
        lengths = [len(one.prompt) + len(one.answer.ids) for one in experience.judged]
        own = share_of_rank(numbers, lengths, mesh.data_rank, mesh.data_size)
        for begin in range(0, len(own), size):
            yield take(experience, advantages, own[begin : begin + size], self.learning.of_answers)

    def _objective(self, total: float, tally: Tally) -> Objective[GrpoBatch]:
        def loss_sum(output: Any, batch: GrpoBatch, cross_entropies: CrossEntropies) -> torch.Tensor:
            device = output.logits.device
            labels = batch.rows.labels.to(device)
            own = token_log_probs(output.logits, labels, cross_entropies, self.learning.temperature).log_probs
            said = TokenTriple(own, batch.old.to(device), batch.reference.to(device))
            sums = grpo(said, batch.advantages.to(device), batch.weights.to(device), self.kl_coef, self.clip)
            tally.add(
                1.0 / total,
                policy_loss=sums.loss,
                clip_share=sums.policy.clipped,
                policy_kl=sums.policy.approx_kl,
                ratio=sums.policy.ratio,
            )
            return sums.loss / total

        return Objective(lambda batch: model_inputs(batch.rows), loss_sum)


def take(experience: Experience, advantages: torch.Tensor, numbers: Sequence[int], of_answers: bool) -> GrpoBatch:
    """Make a micro-batch of these answers.

    Args:
        experience: of a rollout.
        advantages: [A] of its answers.
        numbers: of the answers.
        of_answers: every answer weighs the same, not every token.
    """
    chosen = [experience.judged[number] for number in numbers]
    lengths = torch.tensor([len(one.answer.ids) for one in chosen])
    owners = torch.repeat_interleave(torch.arange(len(chosen)), lengths)
    return GrpoBatch(
        rows=pack([(one.prompt, one.answer.ids) for one in chosen]),
        old=torch.from_numpy(np.concatenate([one.log_probs for one in chosen])),
        reference=torch.from_numpy(np.concatenate([one.reference_log_probs for one in chosen])),
        advantages=advantages[list(numbers)][owners],
        weights=answer_weights(owners, lengths) if of_answers else torch.ones(len(owners)),
    )
