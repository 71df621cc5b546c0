"""The flags of `train.py --stage grpo`, and what of them cannot work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from colossal_llama2.align.direct_settings import check_undivided, refuse_out_of_range
from colossal_llama2.align.ppo_settings import RewardOptions, RolloutOptions
from colossal_llama2.errors import InputError
from colossal_llama2.train.settings import OptimizerOptions, StageSettings


@dataclass(frozen=True)
class GrpoOptions:
    """The numbers of GRPO."""

    group_size: int = 8
    """Answers to each prompt, which are compared with each other."""
    kl_coef: float = 0.04
    """Weight of the KL to the reference in the loss (k3); at 0 it is only logged."""
    eps_clip: float = 0.2
    """How far the ratio of new to old probability may fall below 1 before a token stops teaching."""
    eps_clip_high: float | None = None
    """How far it may rise above 1 (default: --eps_clip; DAPO's clip-higher: 0.28)."""
    divide_by_std: bool = True
    """Divide by the deviation of the group's scores; without, hard and easy prompts weigh as they are (2503.20783)."""
    loss_weighting: Literal["answer", "token"] = "answer"
    """Whether every answer weighs the same in the loss, as in the paper, or every token, as in DAPO."""
    grpo_epochs: int = 1
    """How often a rollout is learned from."""
    grpo_minibatches: int = 1
    """Optimizer steps in one pass over a rollout."""
    offload_frozen: bool = False
    """Keep reference and reward model in host memory, and on the device only while they judge."""
    stop_on_trouble: bool = False
    """End after a checkpoint when a rule of trouble fires, with exit code 3."""
    num_samples: int = 2
    """Answers shown as text in a rollout's metrics and in TensorBoard, every --log_interval rollouts."""


def _small_steps() -> OptimizerOptions:
    """Return the defaults of this stage: the paper's rate, and no decay."""
    return OptimizerOptions(lr=1e-6, weight_decay=0.0)


@dataclass(frozen=True)
class GrpoSettings(StageSettings):
    """Let a policy learn from rewards by comparing its answers to a prompt, without a critic (GRPO, arXiv 2402.03300).

    --dataset names prompts (prepare_dataset --type prompt). A step of this stage is a rollout and everything that is
    learned from it: --max_steps, --save_interval and --log_interval count rollouts; --micro_batch_size counts answers.

    Start it alone, or on several ranks with `torchrun` or `colossalai run`.
    """

    optimizer: OptimizerOptions = field(default_factory=_small_steps)
    stage: Literal["grpo"] = "grpo"
    """What is done; each stage has flags of its own, which --stage NAME --help tells."""
    reward: RewardOptions = field(default_factory=RewardOptions)
    rollouts: RolloutOptions = field(default_factory=RolloutOptions)
    grpo: GrpoOptions = field(default_factory=GrpoOptions)


def check_grpo(settings: GrpoSettings) -> None:
    """Refuse what cannot work, before anything is read.

    Raises:
        InputError: naming the flag.
    """
    _check_numbers(settings)
    check_undivided(settings, "grpo")
    reward, rollouts = settings.reward, settings.rollouts
    if reward.reward_model is None and not reward.reward_function:
        raise InputError("nothing pays for answers", remedy="pass --reward_model DIR or --reward_function module:name")
    if reward.normalise_reward:
        raise InputError("--normalise_reward: GRPO brings each prompt's scores to one scale", remedy="leave it out")
    if rollouts.rollout == "vllm":
        raise InputError("--rollout vllm is offered by --stage ppo alone", remedy="pass --rollout model")
    if settings.parallel.plugin == "gemini_auto":
        raise InputError(
            "--plugin gemini_auto cannot run a model before its first training step, and GRPO begins with a rollout",
            remedy="pass --plugin gemini, or zero2_cpu to keep what the optimizer holds in host memory",
        )
    for flag, given in (
        ("--accumulation_steps", settings.data.accumulation_steps != 1),
        ("--eval_dataset", bool(settings.evaluation.eval_dataset)),
    ):
        if given:
            raise InputError(f"{flag} means nothing to --stage grpo", remedy="leave it out")


def check_ranks(settings: GrpoSettings, data_ranks: int) -> None:
    """Refuse sizes that do not divide among the ranks: they make as many forward passes as one another.

    Raises:
        InputError: naming the flag.
    """
    answers, parts = settings.rollouts.rollout_batch * settings.grpo.group_size, settings.grpo.grpo_minibatches
    if answers % (data_ranks * parts):
        raise InputError(
            f"--rollout_batch {settings.rollouts.rollout_batch} of --group_size {settings.grpo.group_size} cannot be "
            f"divided into {parts} minibatches for {data_ranks} ranks",
            remedy=f"let their product be a multiple of {data_ranks * parts}",
        )


def _check_numbers(settings: GrpoSettings) -> None:
    reward, rollouts, grpo = settings.reward, settings.rollouts, settings.grpo
    least = {
        "group_size": (grpo.group_size, 2),
        "grpo_epochs": (grpo.grpo_epochs, 1),
        "grpo_minibatches": (grpo.grpo_minibatches, 1),
        "num_samples": (grpo.num_samples, 0),
        "rollout_batch": (rollouts.rollout_batch, 1),
        "generation_batch": (rollouts.generation_batch, 1),
        "max_new_tokens": (rollouts.max_new_tokens, 1),
    }
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise InputError(f"--{name} is {value}", remedy=f"give at least {smallest}")
    optional = {"eps_clip_high": grpo.eps_clip_high, "reward_clip": reward.reward_clip}
    given = {name: number for name, number in optional.items() if number is not None}
    refuse_out_of_range({"temperature": rollouts.temperature, "eps_clip": grpo.eps_clip, **given}, above_zero=True)
    refuse_out_of_range(
        {
            "kl_coef": grpo.kl_coef,
            "missing_end_penalty": reward.missing_end_penalty,
            "reward_model_weight": abs(reward.reward_model_weight),
            "reward_function_weight": abs(reward.reward_function_weight),
        },
        above_zero=False,
    )
