"""The flags of `train.py --stage dpo|simpo|orpo|kto`, and what of them cannot work."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from colossal_llama2.align.direct_losses import DpoKind
from colossal_llama2.align.reference import ReferenceOptions
from colossal_llama2.errors import InputError
from colossal_llama2.train.settings import OptimizerOptions, StageSettings


@dataclass(frozen=True)
class DpoOptions:
    """The numbers of DPO."""

    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    dpo_loss: DpoKind = "sigmoid"
    """sigmoid: DPO as in its paper; ipo: the squared distance from a margin of 1 / (2 beta) (arXiv 2310.12036), which
    does not go on for ever where all answers agree."""
    label_smoothing: float = 0.0
    """Share of pairs believed to be the wrong way round, below 0.5; for sigmoid."""


@dataclass(frozen=True)
class SimpoOptions:
    """The numbers of SimPO."""

    beta: float = 2.0
    """What the mean log-probability of an answer's tokens is multiplied by."""
    gamma: float = 1.0
    """Margin by which the better answer is to win, in those units."""


@dataclass(frozen=True)
class OrpoOptions:
    """The numbers of ORPO."""

    orpo_lambda: float = 0.1
    """Weight of the odds ratio beside the cross-entropy of the better answer."""


@dataclass(frozen=True)
class KtoOptions:
    """The numbers of KTO."""

    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    desirable_weight: float = 1.0
    """Weight of good answers (rank 0); the paper keeps its ratio times that of the numbers of answers near 1 to 4/3."""
    undesirable_weight: float = 1.0
    """Weight of the others."""


def _small_steps() -> OptimizerOptions:
    """Return the defaults of these stages: a few hundredths of pretraining's steps, as in the papers, and no decay."""
    return OptimizerOptions(lr=1e-6, weight_decay=0.0)


def _orpo_steps() -> OptimizerOptions:
    """Return ORPO's: it learns its answers as well, from 8e-6 in the paper."""
    return OptimizerOptions(lr=8e-6, weight_decay=0.0)


@dataclass(frozen=True)
class DpoSettings(StageSettings):
    """Learn from compared answers directly, near the model that training starts from (DPO, arXiv 2305.18290).

    --micro_batch_size counts prompts. Start it alone, or on several ranks with `torchrun` or `colossalai run`.
    """

    optimizer: OptimizerOptions = field(default_factory=_small_steps)
    stage: Literal["dpo"] = "dpo"
    """What is done; each stage has flags of its own, which --stage NAME --help tells."""
    dpo: DpoOptions = field(default_factory=DpoOptions)
    reference_options: ReferenceOptions = field(default_factory=ReferenceOptions)


@dataclass(frozen=True)
class SimpoSettings(StageSettings):
    """Learn from compared answers without a reference, by the mean over an answer's tokens (SimPO, arXiv 2405.14734).

    --micro_batch_size counts prompts. Start it alone, or on several ranks with `torchrun` or `colossalai run`.
    """

    optimizer: OptimizerOptions = field(default_factory=_small_steps)
    stage: Literal["simpo"] = "simpo"
    """What is done; each stage has flags of its own, which --stage NAME --help tells."""
    simpo: SimpoOptions = field(default_factory=SimpoOptions)


@dataclass(frozen=True)
class OrpoSettings(StageSettings):
    """Learn the better answers and to prefer them at once, without a reference (ORPO, arXiv 2403.07691).

    --micro_batch_size counts prompts. Start it alone, or on several ranks with `torchrun` or `colossalai run`.
    """

    optimizer: OptimizerOptions = field(default_factory=_orpo_steps)
    stage: Literal["orpo"] = "orpo"
    """What is done; each stage has flags of its own, which --stage NAME --help tells."""
    orpo: OrpoOptions = field(default_factory=OrpoOptions)


@dataclass(frozen=True)
class KtoSettings(StageSettings):
    """Learn from answers that are good or bad each by itself, near the model training starts from (KTO, 2402.01306).

    --micro_batch_size counts prompts. Start it alone, or on several ranks with `torchrun` or `colossalai run`.
    """

    optimizer: OptimizerOptions = field(default_factory=_small_steps)
    stage: Literal["kto"] = "kto"
    """What is done; each stage has flags of its own, which --stage NAME --help tells."""
    kto: KtoOptions = field(default_factory=KtoOptions)
    reference_options: ReferenceOptions = field(default_factory=ReferenceOptions)


def refuse_out_of_range(numbers: dict[str, float], above_zero: bool) -> None:
    """Refuse numbers that are none, or too small.

    Args:
        numbers: by the flag's name.
        above_zero: 0 is too small.

    Raises:
        InputError: naming the flag.
    """
    for name, value in numbers.items():
        if not math.isfinite(value) or value < 0 or (above_zero and value == 0):
            least = "a number above 0" if above_zero else "0 or more"
            raise InputError(f"--{name} is {value}", remedy=f"give {least}")


def check_undivided(settings: StageSettings, stage: str) -> None:
    """Refuse divisions that whole sequences do not go through, and what watches a loss of next tokens.

    Raises:
        InputError: naming the flag.
    """
    for name in ("pp", "sp"):
        degree = getattr(settings.parallel, name)
        if degree > 1:
            raise InputError(
                f"--{name} {degree}: --stage {stage} needs whole sequences and all layers on a rank",
                remedy=f"leave --{name} at 1; --tp divides matrices, zero2 and gemini memory",
            )
    for flag, given in (
        ("--new_rows_interval", settings.output.new_rows_interval),
        ("--stop_when_flat", settings.model.stop_when_flat),
    ):
        if given:
            raise InputError(
                f"{flag} watches the loss of next tokens, which --stage {stage} has not", remedy="leave it out"
            )
