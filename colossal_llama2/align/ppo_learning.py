"""Learning from a rollout's experience: step 4 of PPO, update by update."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from colossal_llama2.align.experience import Experience, PpoBatch, minibatches, share_of_rank, take, total_weight
from colossal_llama2.align.log_probs import learned_positions, token_log_probs
from colossal_llama2.align.ppo_losses import PolicyClip, policy_loss, ptx_weights, value_loss
from colossal_llama2.align.pretraining_rows import PretrainingRows
from colossal_llama2.dataset.batches import Batch
from colossal_llama2.engine import ranks
from colossal_llama2.engine.session import CrossEntropies, Objective, Session, StepOutcome
from colossal_llama2.train.stage import model_inputs, token_loss_sum
from colossal_llama2.train.stopping import NonFiniteError

_SUMS = ("policy_loss", "clip_share", "policy_kl", "ratio", "value_loss", "value_clip_share", "value_error", "ptx_loss")


@dataclass(frozen=True)
class Learning:
    """How updates are made.

    Attributes:
        epochs: passes over a rollout.
        minibatches: updates of one pass.
        micro_batch_size: answers a rank computes at a time.
        eps_clip: how far the ratio may go from 1.
        value_clip: how far a value may go from what it was; None for any distance.
        ptx_coef: see `ptx_weights`.
        ptx_form: see there.
        temperature: the sampler's.
        of_answers: every answer weighs the same, not every token.
        seed: decides the order of the answers.
    """

    epochs: int
    minibatches: int
    micro_batch_size: int
    eps_clip: float
    value_clip: float | None
    ptx_coef: float
    ptx_form: Any
    temperature: float
    of_answers: bool
    seed: int


@dataclass
class Tally:
    """What the updates of a rollout came to, added up over micro-batches, updates and, at the end, ranks.

    Attributes:
        updates: made.
        actor_updates: those in which the policy learned as well.
        skipped: of both models' steps, for overflown half-precision gradients.
        actor_grad_norm: sum over the steps that were not skipped.
        critic_grad_norm: the same for the critic.
    """

    updates: int = 0
    actor_updates: int = 0
    skipped: int = 0
    actor_grad_norm: float = 0.0
    critic_grad_norm: float = 0.0
    _sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, share: float, **sums: torch.Tensor) -> None:
        """Add sums of a micro-batch times the share that makes a mean over the global minibatch of them."""
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().double() * share

    def means(self, speaks: bool) -> dict[str, float]:
        """Return the mean over updates of each figure, from all ranks; a collective call.

        Args:
            speaks: this rank counts among those that saw the same rows.
        """
        own = [float(self._sums.get(name, 0.0)) * speaks for name in _SUMS]
        summed = dict(zip(_SUMS, ranks.sum_over_ranks(*own), strict=True))
        of_critic = {name for name in _SUMS if name.startswith("value")}
        return {
            name: value / max(self.updates if name in of_critic else self.actor_updates, 1)
            for name, value in summed.items()
        }


@dataclass(frozen=True)
class Learner:
    """Policy and critic, and what the policy must not forget.

    Attributes:
        actor: the policy.
        critic: the value function.
        pretraining: rows beside every update of the policy, or None.
        learning: how.
    """

    actor: Session
    critic: Session
    pretraining: PretrainingRows | None
    learning: Learning

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps of a rollout."""
        return self.learning.epochs * self.learning.minibatches

    def learn(self, experience: Experience, step: int, actor_learns: bool) -> Tally:
        """Make every update of a rollout; every rank holds the same experience.

        Args:
            experience: of all ranks.
            step: rollouts done before.
            actor_learns: False while the critic warms up.
        """
        tally, learning = Tally(), self.learning
        for epoch in range(learning.epochs):
            for numbers in minibatches(len(experience), learning.minibatches, learning.seed, step, epoch):
                self._update(experience, numbers, tally, actor_learns)
        return tally

    def _update(self, experience: Experience, numbers: Sequence[int], tally: Tally, actor_learns: bool) -> None:
        batches = list(self._micro_batches(experience, numbers))
        total = total_weight(experience, numbers, self.learning.of_answers)
        tally.updates += 1
        self.critic.learn(batches, self._critic_objective(total, tally), self.critic.mesh.data_size)
        tally.critic_grad_norm += _counted(self.critic.step(), tally, "the critic")
        if not actor_learns:
            return
        tally.actor_updates += 1
        rows = [] if self.pretraining is None else self.pretraining.next_rows()
        ptx_total = ranks.sum_over_ranks(sum(row.num_learned for row in rows) * self.actor.mesh.speaks_for_rows)[0]
        objective = self._actor_objective(total, ptx_total, tally)
        both: list[PpoBatch | Batch] = [*batches, *rows]
        self.actor.learn(both, objective, self.actor.mesh.data_size)
        tally.actor_grad_norm += _counted(self.actor.step(), tally, "the policy")

    def _micro_batches(self, experience: Experience, numbers: Sequence[int]) -> Iterator[PpoBatch]:
        mesh, learning = self.actor.mesh, self.learning
        lengths = [len(one.prompt) + len(one.answer.ids) for one in experience.judged]
        own = share_of_rank(numbers, lengths, mesh.data_rank, mesh.data_size)
        for begin in range(0, len(own), learning.micro_batch_size):
            yield take(experience, own[begin : begin + learning.micro_batch_size], learning.of_answers)

    def _actor_objective(self, total: float, ptx_total: float, tally: Tally) -> Objective[PpoBatch | Batch]:
        learning = self.learning
        of_policy, of_ptx = ptx_weights(learning.ptx_form, learning.ptx_coef) if self.pretraining else (1.0, 0.0)

        def loss_sum(output: Any, batch: PpoBatch | Batch, cross_entropies: CrossEntropies) -> torch.Tensor:
            if isinstance(batch, Batch):
                share = 1.0 / max(ptx_total, 1.0)
                loss = token_loss_sum(output, batch, cross_entropies)
                tally.add(share, ptx_loss=loss)
                return loss * (of_ptx * share)
            labels = batch.rows.labels.to(output.logits.device)
            log_probs = token_log_probs(output.logits, labels, cross_entropies, learning.temperature).log_probs
            old, advantages, weights = (
                tensor.to(log_probs.device) for tensor in (batch.old_log_probs, batch.advantages, batch.weights)
            )
            sums = policy_loss(log_probs, old, advantages, weights, PolicyClip(learning.eps_clip))
            tally.add(
                1.0 / total,
                policy_loss=sums.loss,
                clip_share=sums.clipped,
                policy_kl=sums.approx_kl,
                ratio=sums.ratio,
            )
            return sums.loss * (of_policy / total)

        return Objective(_inputs, loss_sum)

    def _critic_objective(self, total: float, tally: Tally) -> Objective[PpoBatch]:
        def loss_sum(output: Any, batch: PpoBatch, cross_entropies: CrossEntropies) -> torch.Tensor:
            values = output.values.reshape(-1)
            before = (learned_positions(batch.rows.labels) - 1).to(values.device)
            old, returns, weights = (
                tensor.to(values.device) for tensor in (batch.old_values, batch.returns, batch.weights)
            )
            sums = value_loss(values[before], old, returns, weights, self.learning.value_clip)
            tally.add(1.0 / total, value_loss=sums.loss, value_clip_share=sums.clipped, value_error=sums.error)
            return sums.loss / total

        return Objective(_inputs, loss_sum)


def _inputs(batch: PpoBatch | Batch) -> dict[str, Any]:
    return model_inputs(batch.rows if isinstance(batch, PpoBatch) else batch)


def _counted(outcome: StepOutcome, tally: Tally, who: str) -> float:
    """Count a step that was skipped, and refuse gradients that are no numbers: all ranks see the same norm."""
    if outcome.skipped:
        tally.skipped += 1
        return 0.0
    if not math.isfinite(outcome.grad_norm):
        raise NonFiniteError(f"the gradients of {who} are not finite and have spoiled its weights")
    return outcome.grad_norm
