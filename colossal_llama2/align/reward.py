"""`train.py --stage reward`: a model that scores answers, from answers that people compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from colossal_llama2.align.chat_templates import check_templates, template_files
from colossal_llama2.align.reward_losses import PairwiseLoss, ranked_pairs, reward_sums
from colossal_llama2.dataset.batches import Batch
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.loader import GlobalBatches, LoaderSettings
from colossal_llama2.dataset.ranked_batches import RankedBatch, collate_ranked
from colossal_llama2.engine.session import CrossEntropies
from colossal_llama2.errors import InputError
from colossal_llama2.model.scalar_head import load_scorer, scorer_config, scores
from colossal_llama2.model.scorer_merging import merge_scorer
from colossal_llama2.train.settings import StageSettings
from colossal_llama2.train.stage import Figures, LossSums, Stage
from colossal_llama2.train.supervised import run_stage

_OF_PAIRS: Final = ("accuracy", "margin", "chosen", "rejected")
_OF_LENGTHS: Final = ("score_squares", "length_squares", "products")


@dataclass(frozen=True)
class RewardOptions:
    """What is said to the reward model alone."""

    reward_loss: PairwiseLoss = "log_sig"
    """Loss of a pair: -log sigmoid of its margin, or log(1 + exp) of what it lacks; the same number, both names are in
    use."""


@dataclass(frozen=True)
class RewardSettings(StageSettings):
    """Train a reward model: a head of one row on a language model, from answers of which one is better.

    Start it alone, or on several ranks with `torchrun` or `colossalai run`. --micro_batch_size counts prompts.
    """

    stage: Literal["reward"] = "reward"
    """What is done; each stage has flags of its own, which --stage NAME --help tells."""
    reward: RewardOptions = field(default_factory=RewardOptions)


class Reward(Stage):
    """Score the better answer higher, at its last token; a prompt weighs the same however many answers it has."""

    name = "reward"
    scores = True
    figure_names = (*_OF_PAIRS, *_OF_LENGTHS)
    settings: RewardSettings

    def check(self) -> None:
        """Refuse what a model that scores has not.

        Raises:
            InputError: naming the flag.
        """
        model, parallel = self.settings.model, self.settings.parallel
        for name in ("freeze_non_embeds_params", "train_new_rows_only"):
            if getattr(model, name):
                raise InputError(f"--{name} would leave the score to a head that was drawn", remedy="leave it out")
        for name in ("pp", "sp"):
            if getattr(parallel, name) > 1:
                raise InputError(
                    f"--{name} {getattr(parallel, name)}: a reward model is not divided that way",
                    remedy=f"leave --{name} at 1; --tp divides its layers, zero2 and gemini its memory",
                )
        if self.settings.output.new_rows_interval:
            raise InputError(
                "--new_rows_interval reports on losses of tokens, and there are none", remedy="leave it out"
            )

    def open_data(self, dirs: Sequence[Path]) -> PreparedCorpus:
        """Open sets of compared answers."""
        return PreparedCorpus.open(dirs, types=("preference",))

    def check_together(self, data: PreparedCorpus, evaluated: PreparedCorpus | None, weights_dir: Path) -> None:
        """Refuse sets of several chat templates, and say when the tokenizer has another.

        Raises:
            InputError: there is more than one.
        """
        check_templates(self.settings, data, evaluated, weights_dir)

    def changed_files(self, data: PreparedCorpus) -> dict[str, str]:
        """Let the finished folder be that of a model that scores, with the set's chat template."""
        return {**template_files(self.settings, data), "config.json": scorer_config(self.settings.model.pretrained)}

    def load_model(self, weights_dir: Path) -> nn.Module:
        """Load the layers, with their head if they have one that scores."""
        settings = self.settings
        precision, flash = settings.parallel.mixed_precision, settings.model.use_flash_attn
        return load_scorer(weights_dir, precision, flash, settings.optimizer.seed)

    def merge(self, adapter_dir: Path, target: Path) -> None:
        """Write the finished adapter and head with the layers they were trained on."""
        merge_scorer(self.settings.model.pretrained, adapter_dir, target)

    def batches(self, data: PreparedCorpus, loader: LoaderSettings) -> GlobalBatches:
        """Deal prompts with all their answers to the ranks, packed."""
        return GlobalBatches(data, loader, partial(collate_ranked, max_length=self.settings.data.max_length))

    def count(self, batch: Batch) -> int:
        """Count the prompts of which one answer is better than another."""
        assert isinstance(batch, RankedBatch)
        return batch.num_compared

    def loss_sums(self, output: Any, batch: Batch, cross_entropies: CrossEntropies) -> LossSums:
        """Add up the losses of all pairs, those of a prompt weighing one together."""
        assert isinstance(batch, RankedBatch)
        scored = scores(output.values, batch.document_ends)
        prompts, order = batch.prompts.to(scored.device), batch.ranks.to(scored.device)
        pairs = ranked_pairs(order, prompts)
        sums = reward_sums(
            scored[pairs.chosen], scored[pairs.rejected], self.settings.reward.reward_loss, weights=pairs.weights
        )
        of_pairs = dict(zip(_OF_PAIRS, (sums.correct, sums.margin, sums.chosen, sums.rejected), strict=True))
        lengths = batch.answer_lengths.to(scored.device)
        return LossSums(sums.loss, {**of_pairs, **length_products(scored.detach(), lengths, prompts)})

    def figures(self, sums: Mapping[str, float], count: int) -> Figures:
        """Return accuracy, margin, mean scores, and how the score goes with the answer's length."""
        found: Figures = {name: sums[name] / count for name in _OF_PAIRS}
        spread = (sums["score_squares"] * sums["length_squares"]) ** 0.5
        return {**found, "length_correlation": sums["products"] / spread if spread else None}


def length_products(scored: torch.Tensor, lengths: torch.Tensor, prompts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sum what the correlation of score and length among the answers of a prompt is made of.

    Both are taken from their mean over the prompt's answers, because only those are compared: a model that scores long
    answers higher whatever they say comes near 1, one that does not see their length near 0.

    Args:
        scored: [N].
        lengths: [N], tokens of each answer.
        prompts: [N] int64.

    Returns:
        Sums of squares and of products, float64.
    """
    number = int(prompts.max()) + 1 if len(prompts) else 0
    answers = torch.bincount(prompts, minlength=number).clamp(min=1)

    def centred(numbers: torch.Tensor) -> torch.Tensor:
        numbers = numbers.to(torch.float64)
        means = numbers.new_zeros(number).index_add(0, prompts, numbers) / answers
        return numbers - means[prompts]

    score, length = centred(scored), centred(lengths)
    return dict(zip(_OF_LENGTHS, (score.square().sum(), length.square().sum(), (score * length).sum()), strict=True))


def main(settings: RewardSettings) -> int:
    """Train; return 0, or 143 when a SIGTERM ended the run after a checkpoint."""
    return run_stage(Reward(settings))
