"""Proximal policy optimisation, a rollout at a time: generate, score, advantage, optimise.

Schulman et al., arXiv 1707.06347; on language models Ziegler et al., arXiv 1909.08593, and InstructGPT (Ouyang et al.,
arXiv 2203.02155), from which the pretraining loss beside the policy's comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist

from colossal_llama2.align import ppo_losses
from colossal_llama2.align.experience import Experience, Judged, shape
from colossal_llama2.align.ppo_learning import Tally
from colossal_llama2.align.ppo_run import PpoRun
from colossal_llama2.align.ppo_watching import Clock, watch_and_log
from colossal_llama2.align.rollouts import Answer, Prompt
from colossal_llama2.dataset.prompt_set import PromptRow
from colossal_llama2.engine import ranks
from colossal_llama2.train.checkpoints import Position
from colossal_llama2.train.stopping import NonFiniteError

Ending = Literal["complete", "stopped", "trouble"]


@dataclass(frozen=True)
class Rollout:
    """Prompts and this rank's answers.

    Attributes:
        rows: the rollout's prompts, those of all ranks, in order.
        own: numbers of those that this rank answers.
        answers: to them.
    """

    rows: Sequence[PromptRow]
    own: Sequence[int]
    answers: Sequence[Answer]


def train_ppo(run: PpoRun, start: Position) -> tuple[Position, Ending]:
    """Learn from a position to the end of the run, until a stop is requested, or until there is trouble.

    Raises:
        NonFiniteError: losses or gradients stopped being numbers.
    """
    position = start
    while position.step < run.total_steps:
        if _agree_to_stop(run):
            run.checkpoints.save_and_wait(position)
            return position, "stopped"
        clock = Clock()
        with clock.part("generate"):
            rollout = generate(run, position)  # 1
        with clock.part("score"):
            judged = score(run, rollout)  # 2
        with clock.part("advantage"):
            experience = advantage(run, judged)  # 3
        with clock.part("optimise"):
            tally = optimise(run, experience, position)  # 4
        position = _advance(run, position, experience)
        begun = watch_and_log(run, position, experience, tally, clock)
        if run.save_interval and position.step % run.save_interval == 0:
            run.checkpoints.save(position)
        if begun and run.stop_on_trouble:
            run.checkpoints.save_and_wait(position)
            return position, "trouble"
    return position, "complete"


def generate(run: PpoRun, position: Position) -> Rollout:
    """Answer this rank's share of the next prompts."""
    taken = run.prompts.take(run.seed, position.epoch, position.rows_consumed, run.rollout_batch)
    rows = [run.prompts.row(index) for _, index in taken]
    mesh = run.learner.actor.mesh
    by_length = sorted(range(len(rows)), key=lambda number: (-len(rows[number].ids), number))
    own = by_length[mesh.data_rank :: mesh.data_size]  # every rank has short ones and long ones
    # an answer depends on the weights and on these, not on who writes it or in whose company
    asked = [Prompt(rows[number].ids, (run.seed, position.step, number)) for number in own]
    return Rollout(rows, own, run.generator.answer(asked))


def score(run: PpoRun, rollout: Rollout) -> list[Judged]:
    """Have this rank's answers judged, and return those of all ranks in the order of their prompts."""
    own = run.judge.judge([rollout.rows[number] for number in rollout.own], rollout.answers)
    mesh = run.learner.actor.mesh
    said = list(zip(rollout.own, own, strict=True)) if mesh.speaks_for_rows else []
    of_ranks: list[list[tuple[int, Judged]]] = [[] for _ in range(ranks.world_size())]
    dist.all_gather_object(of_ranks, said)
    everything = dict(pair for pairs in of_ranks for pair in pairs)
    return [everything[number] for number in range(len(rollout.rows))]


def advantage(run: PpoRun, judged: Sequence[Judged]) -> Experience:
    """Turn scores into rewards, advantages and returns; the same on every rank."""
    payment, state = run.payment, run.state
    scores = torch.tensor(
        [payment.model_weight * one.model_score + payment.function_weight * one.function_score for one in judged]
    )
    if payment.normalise:
        state.scores.merge(ppo_losses.masked_moments(scores, torch.ones_like(scores, dtype=torch.bool)))
        scores = state.scores.normalise(scores)
    ended = torch.tensor([one.answer.ended for one in judged])
    paid = ppo_losses.final_scores(scores, ended, payment.missing_end_penalty, payment.clip)
    return shape(judged, paid, state.kl_control.coef, run.shaping)


def optimise(run: PpoRun, experience: Experience, position: Position) -> Tally:
    """Make the updates of a rollout."""
    try:
        return run.learner.learn(experience, position.step, actor_learns=position.step >= run.critic_warmup)
    except NonFiniteError as error:
        run.checkpoints.complete()
        raise NonFiniteError(f"rollout {position.step + 1}: {error}; {run.checkpoints.way_back()}") from None


def _agree_to_stop(run: PpoRun) -> bool:
    """Agree on whether anybody is to stop, or all have written a checkpoint, in one call."""
    stops, written = ranks.sum_over_ranks(float(run.stop.requested), float(run.checkpoints.written))
    if written == ranks.world_size():
        run.checkpoints.complete()
    return stops > 0


def _advance(run: PpoRun, position: Position, experience: Experience) -> Position:
    epoch, consumed = position.epoch, position.rows_consumed + len(experience)
    while consumed >= run.prompts.num_prompts:
        epoch, consumed = epoch + 1, consumed - run.prompts.num_prompts
    tokens = sum(len(one.prompt) + len(one.answer.ids) for one in experience.judged)
    return replace(
        position, epoch=epoch, step=position.step + 1, rows_consumed=consumed, tokens=position.tokens + tokens
    )
