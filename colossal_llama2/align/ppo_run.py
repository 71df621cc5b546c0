"""Everything a PPO run is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from colossal_llama2.align.experience import Shaping
from colossal_llama2.align.judging import Judge
from colossal_llama2.align.kl_control import KlControl
from colossal_llama2.align.ppo_learning import Learner
from colossal_llama2.align.reward_scaling import RunningScores
from colossal_llama2.align.rollouts import Generator
from colossal_llama2.align.trouble import TroubleWatch
from colossal_llama2.dataset.prompt_set import PromptSet
from colossal_llama2.train.checkpoints import Checkpoints
from colossal_llama2.train.flops import StepFlops
from colossal_llama2.train.run_log import RunLog
from colossal_llama2.train.stopping import StopRequest


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
