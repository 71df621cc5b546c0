"""What a rollout came to, taken down: seconds, figures, samples, and the trouble that begins."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from colossal_llama2.align.experience import Experience
from colossal_llama2.align.ppo_figures import describe_samples, figures_of
from colossal_llama2.align.ppo_learning import Tally
from colossal_llama2.align.ppo_run import PpoRun
from colossal_llama2.engine import ranks
from colossal_llama2.train.checkpoints import Position
from colossal_llama2.train.run_log import RunLog, StepMetrics
from colossal_llama2.train.stopping import NonFiniteError


class Clock:
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


def watch_and_log(run: PpoRun, position: Position, experience: Experience, tally: Tally, clock: Clock) -> list[str]:
    """Take a rollout's figures down; return the trouble that begins with it. The same on every rank.

    Raises:
        NonFiniteError: the losses stopped being numbers.
    """
    seconds = clock.total
    figures = figures_of(experience, run.state.kl_control.coef)
    figures |= tally.means(run.learner.actor.mesh.speaks_for_rows)
    figures |= {f"seconds_{name}": value for name, value in clock.seconds.items()}
    figures["samples_per_second"] = len(experience) / seconds
    run.state.kl_control.update(figures["kl"], len(experience))
    loss = figures["policy_loss"] + figures["value_loss"]
    if not math.isfinite(loss):
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
