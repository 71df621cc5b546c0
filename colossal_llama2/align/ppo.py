"""Proximal policy optimisation, a rollout at a time: generate, score, advantage, optimise.

Schulman et al., arXiv 1707.06347; on language models Ziegler et al., arXiv 1909.08593, and InstructGPT (Ouyang et al.,
arXiv 2203.02155), from which the pretraining loss beside the policy's comes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.distributed as dist

from colossal_llama2.align import ppo_losses
from colossal_llama2.align.experience import Experience, Judged, Shaping, shape
from colossal_llama2.align.judging import Judge
from colossal_llama2.align.kl_control import KlControl
from colossal_llama2.align.ppo_figures import describe_samples, figures_of
from colossal_llama2.align.ppo_learning import Learner, Tally
from colossal_llama2.align.reward_scaling import RunningScores
from colossal_llama2.align.rollouts import Answer, Generator, Prompt
from colossal_llama2.align.trouble import TroubleWatch
from colossal_llama2.dataset.prompt_set import PromptRow, PromptSet
from colossal_llama2.engine import ranks
from colossal_llama2.train.checkpoints import Checkpoints, Position
from colossal_llama2.train.flops import StepFlops
from colossal_llama2.train.run_log import RunLog, StepMetrics
from colossal_llama2.train.stopping import NonFiniteError, StopRequest

Ending = Literal["complete", "stopped", "trouble"]


@dataclass(frozen=True)
class Payment:
    """How scores become what an answer is rewarded with.

    Attributes:
        model_weight: of the reward model's score.
        function_weight: of the reward function's.
        normalise: by running mean and deviation.
        clip: bound of what comes of it, or None.
        missing_end_penalty: taken off where there is no end token.
    """

    model_weight: float = 1.0
    function_weight: float = 1.0
    normalise: bool = False
    clip: float | None = None
    missing_end_penalty: float = 0.0


@dataclass
class PpoState:
    """What a run learns beside weights and must find again after a resume.

    Attributes:
        kl_control: the KL's coefficient.
        scores: running mean and deviation of the scores.
        trouble: figures of the last rollouts.
    """

    kl_control: KlControl
    scores: RunningScores = field(default_factory=RunningScores)
    trouble: TroubleWatch = field(default_factory=TroubleWatch)


@dataclass(frozen=True)
class PpoRun:
    """Everything one run is made of.

    Attributes:
        prompts: what is answered.
        generator: writes answers.
        judge: says what they are worth.
        learner: policy and critic.
        shaping: how rewards become advantages.
        payment: how scores become rewards.
        state: see there.
        checkpoints: writes checkpoints and knows the last one.
        total_steps: rollouts of the whole run.
        rollout_batch: prompts of a rollout.
        critic_warmup: first rollouts in which the critic learns alone.
        seed: decides the order of the prompts, and what is drawn.
        save_interval: rollouts between checkpoints, 0 for none.
        sample_interval: rollouts between samples as text.
        num_samples: how many of them.
        stop_on_trouble: end when a rule fires.
        stop: asked between rollouts.
        log: the first rank's log, None elsewhere.
        flops: arithmetic of a training step of the policy.
        peak_flops: of all ranks together, in FLOP/s.
    """

    prompts: PromptSet
    generator: Generator
    judge: Judge
    learner: Learner
    shaping: Shaping
    payment: Payment
    state: PpoState
    checkpoints: Checkpoints
    total_steps: int
    rollout_batch: int
    critic_warmup: int
    seed: int
    save_interval: int
    sample_interval: int
    num_samples: int
    stop_on_trouble: bool
    stop: StopRequest
    log: RunLog | None
    flops: StepFlops
    peak_flops: float


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
        clock = _Clock()
        with clock.part("generate"):
            rollout = generate(run, position)  # 1
        with clock.part("score"):
            judged = score(run, rollout)  # 2
        with clock.part("advantage"):
            experience = advantage(run, judged)  # 3
        with clock.part("optimise"):
            tally = optimise(run, experience, position)  # 4
        position = _advance(run, position, experience)
        begun = _watch_and_log(run, position, experience, tally, clock)
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


class _Clock:
    """Seconds of each part of a rollout."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Take the time of what is inside."""
        began = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = time.perf_counter() - began

    @property
    def total(self) -> float:
        """Seconds since the rollout began."""
        return time.perf_counter() - self._began


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


def _watch_and_log(run: PpoRun, position: Position, experience: Experience, tally: Tally, clock: _Clock) -> list[str]:
    """Take a rollout's figures down; return the trouble that begins with it. The same on every rank."""
    seconds = clock.total
    figures = figures_of(experience, run.state.kl_control.coef)
    figures |= tally.means(run.learner.actor.mesh.speaks_for_rows)
    figures |= {f"seconds_{name}": value for name, value in clock.seconds.items()}
    figures["samples_per_second"] = len(experience) / seconds
    run.state.kl_control.update(figures["kl"], len(experience))
    loss = figures["policy_loss"] + figures["value_loss"]
    if not loss - loss == 0.0:
        raise NonFiniteError(f"the loss of rollout {position.step} is {loss}; {run.checkpoints.way_back()}")
    begun = run.state.trouble.look(figures)
    if run.log is not None:
        metrics = _metrics(run, position, experience, tally, seconds)
        shown: list[dict[str, Any]] = []
        if run.num_samples and (position.step % run.sample_interval == 0 or position.step == 1):
            shown = describe_samples(experience, run.judge.tokenizer, run.num_samples)
        run.log.step(replace(metrics, loss=loss, figures=dict(figures), samples=shown))
        _remark(run.log, position.step, figures, shown, begun)
    return begun


def _remark(
    log: RunLog, step: int, figures: Mapping[str, float], shown: Sequence[Mapping[str, Any]], begun: Sequence[str]
) -> None:
    if shown:
        line = (
            f"rollout {step}: reward {figures['reward']:.3f}  KL {figures['kl']:.3f}  "
            f"entropy {figures['entropy']:.3f}  {figures['length']:.1f} tokens, {figures['ended']:.0%} ended  "
            f"clipped {figures['clip_share']:.1%}"
        )
        texts = {
            f"samples/{number}": f"**{sample['prompt']}**\n\n{sample['answer']}\n\nreward {sample['reward']:.3f}"
            for number, sample in enumerate(shown)
        }
        log.remark(step, line, texts)
    for sentence in begun:
        log.remark(step, f"trouble at rollout {step}: {sentence}", {"trouble": sentence})


def _metrics(run: PpoRun, position: Position, experience: Experience, tally: Tally, seconds: float) -> StepMetrics:
    lengths = [len(one.prompt) + len(one.answer.ids) for one in experience.judged]
    # generation, the policy, reference and critic are a forward pass each, a third of a training step; then both learn
    passes = 4 / 3 + 2 * run.learner.learning.epochs
    actor_steps = max(tally.actor_updates, 1)
    return StepMetrics(
        step=position.step,
        epoch=position.epoch,
        tokens=position.tokens,
        learned_tokens=sum(len(one.answer.ids) for one in experience.judged),
        loss=0.0,
        grad_norm=tally.actor_grad_norm / actor_steps,
        lr=run.learner.actor.learning_rate,
        tokens_per_second=sum(lengths) / seconds,
        mfu=run.flops.of(sum(lengths), lengths) * passes / seconds / run.peak_flops,
        memory=ranks.peak_memory(),
        seconds=seconds,
        data_seconds=0.0,
        skipped=tally.skipped > 0,
    )
