"""`train.py --stage dpo|simpo|orpo`: learning from pairs of answers to one prompt."""

from __future__ import annotations

from typing import Any, Final

import torch

from colossal_llama2.align import direct_losses
from colossal_llama2.align.direct_batches import DirectBatch, answer_log_probs
from colossal_llama2.align.direct_losses import Pairs
from colossal_llama2.align.direct_settings import DpoSettings, OrpoSettings, SimpoSettings, refuse_out_of_range
from colossal_llama2.align.direct_stage import DirectStage
from colossal_llama2.align.reward_losses import ranked_pairs, sum_pairs
from colossal_llama2.dataset.batches import Batch
from colossal_llama2.engine.session import CrossEntropies
from colossal_llama2.errors import InputError
from colossal_llama2.train.stage import LossSums
from colossal_llama2.train.supervised import run_stage

_OF_PAIRS: Final = ("accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_log_prob", "rejected_log_prob")


class PairStage(DirectStage):
    """A method that compares two answers to one prompt: every pair weighs the same."""

    figure_names: tuple[str, ...] = _OF_PAIRS

    def pair_losses(self, policy: Pairs, chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[Any, ...]:
        """Return losses [P], rewards of the chosen and the rejected answers [P], and more figures [P].

        Args:
            policy: of P pairs.
            chosen: [P], which answers of the micro-batch are the better ones.
            rejected: [P], which the worse ones.
        """
        raise NotImplementedError

    def loss_sums(self, output: Any, batch: Batch, cross_entropies: CrossEntropies) -> LossSums:
        """Add up the losses of all pairs."""
        assert isinstance(batch, DirectBatch)
        said = answer_log_probs(output.logits, batch, cross_entropies)
        device = said.sums.device
        chosen, rejected, _ = ranked_pairs(batch.ranks.to(device), batch.prompts.to(device))
        policy = Pairs.of(said, chosen, rejected)
        losses, of_chosen, of_rejected, *more = self.pair_losses(policy, chosen, rejected)
        sums = sum_pairs(losses, of_chosen, of_rejected)
        values = (sums.correct, sums.margin, sums.chosen, sums.rejected, policy.chosen.sum(), policy.rejected.sum())
        of_method = tuple(value.sum() for value in more)
        return LossSums(sums.loss, dict(zip(self.figure_names, values + of_method, strict=True)))


class Dpo(PairStage):
    """Prefer the better answer more than the reference does."""

    name = "dpo"
    sequences = ("answers",)
    settings: DpoSettings

    def check(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            InputError: naming the flag.
        """
        super().check()
        options = self.settings.dpo
        refuse_out_of_range({"beta": options.beta}, above_zero=True)
        if not 0 <= options.label_smoothing < 0.5:
            raise InputError(
                f"--label_smoothing is {options.label_smoothing}", remedy="give a share from 0 to below 0.5"
            )
        if options.dpo_loss == "ipo" and options.label_smoothing:
            raise InputError("--label_smoothing with --dpo_loss ipo, which has none", remedy="leave one out")

    def pair_losses(self, policy: Pairs, chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[Any, ...]:
        """Compare with the reference."""
        options, said = self.settings.dpo, self.said_by_reference()
        lengths = policy.chosen_lengths, policy.rejected_lengths
        reference = Pairs(said[chosen], said[rejected], *lengths)
        return direct_losses.dpo(policy, reference, options.beta, options.dpo_loss, options.label_smoothing)


class Simpo(PairStage):
    """Prefer the better answer by a margin, in the mean over its tokens."""

    name = "simpo"
    settings: SimpoSettings

    def check(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            InputError: naming the flag.
        """
        super().check()
        refuse_out_of_range({"beta": self.settings.simpo.beta}, above_zero=True)
        refuse_out_of_range({"gamma": self.settings.simpo.gamma}, above_zero=False)

    def pair_losses(self, policy: Pairs, chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[Any, ...]:
        """Compare the means."""
        return direct_losses.simpo(policy, self.settings.simpo.beta, self.settings.simpo.gamma)


class Orpo(PairStage):
    """Learn the better answer, and its odds against the worse one."""

    name = "orpo"
    figure_names = (*_OF_PAIRS, "nll", "odds_ratio")
    settings: OrpoSettings

    def check(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            InputError: naming the flag.
        """
        super().check()
        refuse_out_of_range({"orpo_lambda": self.settings.orpo.orpo_lambda}, above_zero=False)

    def pair_losses(self, policy: Pairs, chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[Any, ...]:
        """Compare the odds."""
        return direct_losses.orpo(policy, self.settings.orpo.orpo_lambda)


def dpo(settings: DpoSettings) -> int:
    """Train; return 0, or 143 when a SIGTERM ended the run after a checkpoint."""
    return run_stage(Dpo(settings))


def simpo(settings: SimpoSettings) -> int:
    """Train; see `dpo`."""
    return run_stage(Simpo(settings))


def orpo(settings: OrpoSettings) -> int:
    """Train; see `dpo`."""
    return run_stage(Orpo(settings))
