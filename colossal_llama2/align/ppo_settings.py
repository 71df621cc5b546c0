"""The flags of `train.py --stage ppo`, and what of them cannot work."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from colossal_llama2.align.kl_estimates import KlEstimator
from colossal_llama2.align.ppo_losses import PtxForm
from colossal_llama2.errors import InputError
from colossal_llama2.train.settings import OptimizerOptions, StageSettings


@dataclass(frozen=True)
class RewardOptions:
    """What answers are paid for."""

    reward_model: Path | None = None
    """Folder of a model with a scalar head, from --stage reward: scores each answer at its last token."""
    reward_function: str = ""
    """Python function module:name or path/to/file.py:name, called with the lists prompts, answers and records; returns
    a number an answer. It runs as your own code does, with everything you may do."""
    reward_model_weight: float = 1.0
    """What the model's score is multiplied by before it is added to the function's."""
    reward_function_weight: float = 1.0
    """What the function's score is multiplied by."""
    normalise_reward: bool = False
    """Bring scores to mean 0 and deviation 1 by their running mean and deviation, before clipping."""
    reward_clip: float | None = None
    """Keep scores between -X and X; none if not given (5 is the ancestors')."""
    missing_end_penalty: float = 0.0
    """Taken off the score of an answer that was cut off."""


@dataclass(frozen=True)
class RolloutOptions:
    """How answers are sampled."""

    rollout_batch: int = 64
    """Prompts answered in a step of this stage, over all ranks: a rollout."""
    generation_batch: int = 32
    """Prompts a rank answers at a time."""
    max_new_tokens: int = 256
    """Longest answer, in tokens, its end token included."""
    temperature: float = 1.0
    """Logits are divided by it, in sampling and wherever log-probabilities are taken. There is no top-k or top-p: what
    they cut away after an update is not what they cut away before, and then a ratio of the two does not exist."""
    rollout: Literal["model", "vllm"] = "model"
    """Who writes the answers: the module that is trained, or vLLM where it is installed."""


@dataclass(frozen=True)
class PpoOptions:
    """The numbers of PPO."""

    critic: Path | None = None
    """Folder of a model with a scalar head that the critic starts from, or of a language model that gets one (default:
    --reward_model, else --pretrained)."""
    critic_lr: float | None = None
    """The critic's peak learning rate (default: --lr)."""
    critic_warmup: int = 0
    """First rollouts in which the critic learns alone."""
    ppo_epochs: int = 1
    """How often a rollout is learned from."""
    ppo_minibatches: int = 1
    """Optimizer steps in one pass over a rollout."""
    kl_coef: float = 0.1
    """What the KL to the reference costs, by token, taken off the reward."""
    kl_estimator: KlEstimator = "k1"
    """How the KL is estimated from the tokens drawn: k1 is unbiased, k3 unbiased and never negative, k2 biased."""
    adaptive_kl: float | None = None
    """Steer --kl_coef so that the KL of a whole answer comes to this many nats."""
    adaptive_kl_horizon: int = 10_000
    """Answers over which --adaptive_kl changes the coefficient by as much as it is off, 20% at most."""
    eps_clip: float = 0.2
    """How far the ratio of new to old probability may go from 1 before a token stops teaching."""
    value_clip: float = 0.4
    """How far a value may go from what it was in an update; 0 for any distance."""
    gamma: float = 1.0
    """Discount of later rewards."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation."""
    whiten_advantages: bool = True
    """Bring the advantages of a rollout to mean 0 and deviation 1."""
    loss_weighting: Literal["answer", "token"] = "answer"
    """Whether every answer weighs the same in the losses, or every token."""
    offload_frozen: bool = False
    """Keep reference and reward model in host memory, and on the device only while they judge."""
    stop_on_trouble: bool = False
    """End after a checkpoint when a rule of trouble fires, with exit code 3."""
    num_samples: int = 2
    """Answers shown as text in a rollout's metrics and in TensorBoard, every --log_interval rollouts."""


@dataclass(frozen=True)
class PtxOptions:
    """What the policy must not forget."""

    ptx_dataset: tuple[Path, ...] = ()
    """Prepared corpora of pretraining rows: their cross-entropy is a part of every update of the policy."""
    ptx_coef: float = 0.9
    """How much of it."""
    ptx_form: PtxForm = "share"
    """share: (1 - ptx_coef) policy + ptx_coef cross-entropy; added: policy + ptx_coef cross-entropy."""
    ptx_batch_size: int = 8
    """Rows beside an update, over all ranks."""


def _ppo_optimizer() -> OptimizerOptions:
    """Return the defaults of this stage: a policy that samples its own data bears thirty times smaller steps."""
    return OptimizerOptions(lr=1e-5, weight_decay=0.0)


@dataclass(frozen=True)
class PpoSettings(StageSettings):
    """Let a policy learn from rewards, near a reference, without forgetting what it was pretrained on.

    --dataset names prompts (prepare_dataset --type prompt). A step of this stage is a rollout and everything that is
    learned from it: --max_steps, --save_interval and --log_interval count rollouts; --micro_batch_size counts answers.

    Start it alone, or on several ranks with `torchrun` or `colossalai run`.
    """

    optimizer: OptimizerOptions = field(default_factory=_ppo_optimizer)
    stage: Literal["ppo"] = "ppo"
    """What is done; each stage has flags of its own, which --stage NAME --help tells."""
    reward: RewardOptions = field(default_factory=RewardOptions)
    rollouts: RolloutOptions = field(default_factory=RolloutOptions)
    ppo: PpoOptions = field(default_factory=PpoOptions)
    ptx: PtxOptions = field(default_factory=PtxOptions)

    @property
    def critic_dir(self) -> Path:
        """Folder that the critic starts from."""
        return self.ppo.critic or self.reward.reward_model or self.model.pretrained


def check_ppo(settings: PpoSettings) -> None:
    """Refuse what cannot work, before anything is read.

    Raises:
        InputError: naming the flag.
    """
    _check_numbers(settings)
    reward, plugin = settings.reward, settings.parallel
    if reward.reward_model is None and not reward.reward_function:
        raise InputError("nothing pays for answers", remedy="pass --reward_model DIR or --reward_function module:name")
    if plugin.plugin == "gemini_auto":
        raise InputError(
            "--plugin gemini_auto cannot run a model before its first training step, and PPO begins with a rollout",
            remedy="pass --plugin gemini, or zero2_cpu to keep what the optimizer holds in host memory",
        )
    if plugin.pp > 1 or plugin.sp > 1:
        raise InputError(
            f"--pp {plugin.pp} --sp {plugin.sp}: answers are written with whole sequences and all layers on a rank",
            remedy="leave both at 1; --tp divides matrices, --plugin gemini shards them",
        )
    unused = {
        "--accumulation_steps": settings.data.accumulation_steps != 1,
        "--eval_dataset": bool(settings.evaluation.eval_dataset),
        "--new_rows_interval": bool(settings.output.new_rows_interval),
        "--stop_when_flat": settings.model.stop_when_flat,
    }
    for flag, given in unused.items():
        if given:
            raise InputError(f"{flag} means nothing to --stage ppo", remedy="leave it out")


def check_ranks(settings: PpoSettings, data_ranks: int) -> None:
    """Refuse sizes that do not divide among the ranks: they make as many forward passes as one another.

    Raises:
        InputError: naming the flag.
    """
    parts = data_ranks * settings.ppo.ppo_minibatches
    batch = settings.rollouts.rollout_batch
    if batch % parts:
        raise InputError(
            f"--rollout_batch {batch} cannot be divided into {settings.ppo.ppo_minibatches} minibatches for "
            f"{data_ranks} ranks",
            remedy=f"pass a multiple of {parts}",
        )
    rows, least = settings.ptx.ptx_batch_size, data_ranks
    if settings.ptx.ptx_dataset and rows % least:
        raise InputError(
            f"--ptx_batch_size {rows} cannot be divided among {data_ranks} ranks", remedy=f"pass a multiple of {least}"
        )


def _check_numbers(settings: PpoSettings) -> None:
    reward, rollouts, ppo, ptx = settings.reward, settings.rollouts, settings.ppo, settings.ptx
    least: dict[str, tuple[Any, float]] = {
        "rollout_batch": (rollouts.rollout_batch, 1),
        "generation_batch": (rollouts.generation_batch, 1),
        "max_new_tokens": (rollouts.max_new_tokens, 1),
        "ppo_epochs": (ppo.ppo_epochs, 1),
        "ppo_minibatches": (ppo.ppo_minibatches, 1),
        "critic_warmup": (ppo.critic_warmup, 0),
        "kl_coef": (ppo.kl_coef, 0),
        "adaptive_kl_horizon": (ppo.adaptive_kl_horizon, 1),
        "value_clip": (ppo.value_clip, 0),
        "num_samples": (ppo.num_samples, 0),
        "missing_end_penalty": (reward.missing_end_penalty, 0),
        "ptx_coef": (ptx.ptx_coef, 0),
        "ptx_batch_size": (ptx.ptx_batch_size, 1),
    }
    for name, (value, smallest) in least.items():
        if not smallest <= value < math.inf:
            raise InputError(f"--{name} is {value}", remedy=f"give at least {smallest}")
    above_zero = {
        "temperature": rollouts.temperature,
        "eps_clip": ppo.eps_clip,
        "critic_lr": ppo.critic_lr,
        "adaptive_kl": ppo.adaptive_kl,
        "reward_clip": reward.reward_clip,
    }
    for name, number in above_zero.items():
        if number is not None and not 0 < number < math.inf:
            raise InputError(f"--{name} is {number}", remedy="give a positive number")
    for name, share in (("gamma", ppo.gamma), ("lam", ppo.lam)):
        if not 0 <= share <= 1:
            raise InputError(f"--{name} is {share}", remedy="give a number from 0 to 1")
    for name, weight in (
        ("reward_model_weight", reward.reward_model_weight),
        ("reward_function_weight", reward.reward_function_weight),
    ):
        if not math.isfinite(weight):
            raise InputError(f"--{name} is {weight}", remedy="give a number")
    if ptx.ptx_form == "share" and ptx.ptx_coef > 1:
        raise InputError(
            f"--ptx_coef {ptx.ptx_coef} is no share", remedy="give 0 to 1, or pass --ptx_form added (InstructGPT: 27.8)"
        )
    if ppo.adaptive_kl is not None and ppo.kl_coef == 0:
        raise InputError("--adaptive_kl with --kl_coef 0, which cannot be steered", remedy="pass --kl_coef 0.1, say")
