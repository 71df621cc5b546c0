"""Every stage of `train.py`: its name, its settings, what runs it, and a line of help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from colossal_llama2 import cli
from colossal_llama2.align import (
    direct,
    direct_settings,
    distill,
    grpo_settings,
    grpo_stage,
    kto,
    ppo_settings,
    ppo_stage,
    reward,
    sft,
)
from colossal_llama2.train import pretrain
from colossal_llama2.train.settings import TrainSettings

DEFAULT: Final = "pretrain"
_Entry = tuple[type[Any], Callable[[Any], int], str]
STAGES: Final[dict[str, _Entry]] = {
    "pretrain": (TrainSettings, pretrain.main, "continued pretraining on a prepared corpus"),
    "sft": (sft.SftSettings, sft.main, "fine-tuning on conversations, loss on the assistant's turns alone"),
    "reward": (reward.RewardSettings, reward.main, "a reward model from compared answers"),
    "dpo": (direct_settings.DpoSettings, direct.dpo, "compared answers, near the model it starts from"),
    "simpo": (direct_settings.SimpoSettings, direct.simpo, "compared answers, by the mean over their tokens"),
    "orpo": (direct_settings.OrpoSettings, direct.orpo, "compared answers, learning the better ones as well"),
    "kto": (direct_settings.KtoSettings, kto.main, "answers that are good or bad each by itself"),
    "grpo": (grpo_settings.GrpoSettings, grpo_stage.main, "learning from rewards, answers to a prompt compared"),
    "distill": (distill.DistillSettings, distill.main, "what a larger model of the same vocabulary finds likely"),
    "ppo": (ppo_settings.PpoSettings, ppo_stage.main, "learning from rewards, with a loss on pretraining rows beside"),
}


def choose(arguments: Sequence[str]) -> cli.Command[Any]:
    """Find the stage that a command line, or the file of its ``--config``, asks for.

    Raises:
        InputError: there is no such stage.
    """
    name = cli.chosen("stage", arguments, STAGES, DEFAULT)
    settings_type, main, _ = STAGES[name]
    return cli.Command(settings_type, main, overview())


def overview() -> str:
    """Return the stages and what each is for, for the help."""
    lines = [f"--stage {name}: {text}" for name, (_, _, text) in STAGES.items()]
    return "Stages, each with flags of its own (--stage NAME --help):\n" + "\n".join(lines)
