"""What tells one supervised stage from another: its data, its model, its loss and its figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from colossal_llama2.dataset.batches import Batch
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.loader import GlobalBatches, LoaderSettings
from colossal_llama2.engine import ranks
from colossal_llama2.engine.session import CrossEntropies, Objective, Session
from colossal_llama2.model.document_attention import Documents
from colossal_llama2.model.merging import merge_adapter
from colossal_llama2.model.pretrained import load_for_training
from colossal_llama2.train.losses import next_token_loss_sum
from colossal_llama2.train.settings import StageSettings

Figures = dict[str, float | None]
"""A step's figures by name; None where there is none, a correlation of one value, say."""


@dataclass(frozen=True)
class LossSums:
    """What a micro-batch gives.

    Attributes:
        loss: scalar, the sum of its losses; the loop divides by the count of the global batch.
        figures: scalars without gradient that are added over micro-batches and ranks, by name.
    """

    loss: torch.Tensor
    figures: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Stage:
    """A stage; everything that is not said here is the same for all of them (`supervised`).

    Attributes:
        settings: of the run.
        name: of the stage.
        figure_names: every name in `LossSums.figures`; a rank that computes no loss adds zeros under them.
        predicts_tokens: the loss is next-token prediction, so that the losses on new tokens can be told apart.
        defers_head: nothing is done to logits but `cross_entropies`, so that these need not be there at all.
        scores: the model has a head that scores in the place of one that predicts tokens.
    """

    name: str
    figure_names: tuple[str, ...] = ()
    predicts_tokens = False
    defers_head = False
    scores = False

    def __init__(self, settings: StageSettings) -> None:
        self.settings = settings

    def check(self) -> None:
        """Refuse flags that cannot work, before anything is read.

        Raises:
            InputError: naming the flag.
        """

    def open_data(self, dirs: Sequence[Path]) -> PreparedCorpus:
        """Open what is learned from, or evaluated on.

        Raises:
            InputError: it is not what this stage learns from.
        """
        raise NotImplementedError

    def check_together(self, data: PreparedCorpus, evaluated: PreparedCorpus | None, weights_dir: Path) -> None:
        """Refuse what does not belong together, beyond what holds for every stage, and say what may surprise.

        Raises:
            InputError: naming it.
        """

    def changed_files(self, data: PreparedCorpus) -> dict[str, str]:
        """Return the texts of small files that the finished model's folder must have otherwise than --pretrained."""
        return {}

    def load_model(self, weights_dir: Path) -> nn.Module:
        """Load the model on the CPU, in training order."""
        return load_for_training(
            weights_dir, self.settings.parallel.mixed_precision, self.settings.model.use_flash_attn
        )

    def batches(self, data: PreparedCorpus, loader: LoaderSettings) -> GlobalBatches:
        """Deal the data's rows to the ranks."""
        return GlobalBatches(data, loader)

    def begin(self, session: Session) -> None:
        """Do what must be done once the model is boosted, before a checkpoint is put into it; a collective call."""

    def as_state(self) -> dict[str, Any]:
        """Return what a checkpoint must know of this stage beside its identity, each under its own name."""
        return {}

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Look at all micro-batches of this rank that a mean is to be taken over, before the first of them is run.

        Called before every step and every evaluation, by all ranks; `batches` is read from disk as it is gone through.
        """

    def merge(self, adapter_dir: Path, target: Path) -> None:
        """Write the finished adapter added into its base as a model folder, into an empty folder."""
        merge_adapter(self.settings.model.pretrained, adapter_dir, target)

    def count(self, batch: Batch) -> int:
        """Return how many losses a micro-batch has: the mean over the global batch weighs each the same."""
        return batch.num_learned

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Turn a micro-batch into the model's arguments."""
        return model_inputs(batch)

    def loss_sums(self, output: Any, batch: Batch, cross_entropies: CrossEntropies) -> LossSums:
        """Turn the model's output into the sums of a micro-batch."""
        raise NotImplementedError

    def figures(self, sums: Mapping[str, float], count: int) -> Figures:
        """Turn the sums of a global batch or an evaluation set into figures.

        Args:
            sums: by the names in `figure_names`.
            count: how many losses there were, at least 1.
        """
        return {name: value / count for name, value in sums.items()}


class TokenStage(Stage):
    """A stage that predicts every learned token of its rows."""

    predicts_tokens = True
    defers_head = True

    def loss_sums(self, output: Any, batch: Batch, cross_entropies: CrossEntropies) -> LossSums:
        """Add up the cross-entropies of the learned tokens."""
        return LossSums(token_loss_sum(output, batch, cross_entropies))


class Measured:
    """A stage's loss as the engine asks for it, with the figures added up beside it until they are taken."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._sums = self._zeros()

    @property
    def objective(self) -> Objective[Batch]:
        """What the model is asked for."""
        return Objective(self._stage.inputs, self._loss_sum)

    def take(self) -> torch.Tensor:
        """Return this rank's sums since the last call, float64 on the device, in the order of `figure_names`."""
        taken, self._sums = self._sums, self._zeros()
        return taken

    def _zeros(self) -> torch.Tensor:
        return torch.zeros(len(self._stage.figure_names), device=ranks.device(), dtype=torch.float64)

    def _loss_sum(self, output: Any, batch: Batch, cross_entropies: CrossEntropies) -> torch.Tensor:
        sums = self._stage.loss_sums(output, batch, cross_entropies)
        if self._stage.figure_names:
            found = [sums.figures[name].detach() for name in self._stage.figure_names]
            self._sums += torch.stack([value.to(torch.float64) for value in found])
        return sums.loss


def model_inputs(batch: Batch) -> dict[str, Any]:
    """Return the arguments of a forward pass over packed rows, on this rank's device."""
    return {
        "input_ids": ranks.on_device(batch.input_ids),
        "position_ids": ranks.on_device(batch.position_ids),
        "documents": Documents.of(batch.cu_seq_lens, ranks.on_device(batch.cu_seq_lens)),
        "use_cache": False,
    }


def token_loss_sum(output: Any, batch: Batch, cross_entropies: CrossEntropies) -> torch.Tensor:
    """Sum the losses of a micro-batch's learned tokens, in nats."""
    return next_token_loss_sum(output.logits, batch.labels, cross_entropies)


PRETRAINING = Objective(model_inputs, token_loss_sum)
"""Predict every learned token of packed rows, and measure nothing beside it."""
