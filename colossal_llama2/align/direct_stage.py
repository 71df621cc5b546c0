"""What the direct methods share: compared answers, their log-probabilities, and a reference to stay near."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from colossal_llama2 import cli
from colossal_llama2.align.chat_templates import check_templates, template_files
from colossal_llama2.align.compared_set import ComparedSet
from colossal_llama2.align.direct_batches import DirectBatch, DirectCollate, Sequences
from colossal_llama2.align.direct_settings import check_undivided
from colossal_llama2.align.reference import Reference, ReferenceOptions, References
from colossal_llama2.dataset.batches import Batch
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.loader import GlobalBatches, LoaderSettings
from colossal_llama2.engine.session import Session
from colossal_llama2.errors import InputError
from colossal_llama2.train.checkpoints import find_starting_point
from colossal_llama2.train.stage import Stage, model_inputs


class DirectStage(Stage):
    """Learn from compared answers without a reward model.

    Attributes:
        sequences: of which a reference's log-probabilities are wanted; none for a method without one.
    """

    defers_head = True
    sequences: tuple[Sequences, ...] = ()

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._sets: list[ComparedSet] = []
        self._references: References | None = None
        self._reference: Reference | None = None
        self._reference_said: torch.Tensor | None = None  # of the micro-batch that is being run

    def check(self) -> None:
        """Refuse what whole answers cannot be learned with.

        Raises:
            InputError: naming the flag.
        """
        check_undivided(self.settings, self.name)

    def open_data(self, dirs: Sequence[Path]) -> PreparedCorpus:
        """Open sets of compared answers."""
        return ComparedSet.open(dirs)

    def check_together(self, data: PreparedCorpus, evaluated: PreparedCorpus | None, weights_dir: Path) -> None:
        """Refuse sets with nothing to compare, of several chat templates, and a reference that cannot be had.

        Raises:
            InputError: naming it.
        """
        check_templates(self.settings, data, evaluated, weights_dir)
        named = (self.settings.data.dataset, self.settings.evaluation.eval_dataset)
        for opened, dirs in zip((data, evaluated), named, strict=True):
            if opened is not None:
                assert isinstance(opened, ComparedSet)
                self.check_set(opened, dirs[0])
                self._sets.append(opened)
        if self.sequences:
            model, output = self.settings.model, self.settings.output
            start = find_starting_point(model.pretrained, model.load_checkpoint, output.save_dir)
            options: ReferenceOptions = getattr(self.settings, "reference_options")  # noqa: B009
            self._references = References(self.settings, options, start, self.sequences)
            self._references.check()

    def check_set(self, data: ComparedSet, path: Path) -> None:
        """Refuse a set without pairs, and count the rows that have none.

        Raises:
            InputError: no answer is better than another.
        """
        without = int((data.num_pairs == 0).sum())
        if without == data.num_rows:
            raise InputError(
                "has no row with a better and a worse answer",
                path=path,
                remedy="--stage kto learns from single answers that are good or bad",
            )
        if without:
            cli.say(f"{path}: {without} of {data.num_rows} rows have no pair of a better and a worse answer")

    def changed_files(self, data: PreparedCorpus) -> dict[str, str]:
        """Let the finished tokenizer have the template of the set."""
        return template_files(self.settings, data)

    def batches(self, data: PreparedCorpus, loader: LoaderSettings) -> GlobalBatches:
        """Deal prompts with all their answers to the ranks, packed."""
        assert isinstance(data, ComparedSet)
        return GlobalBatches(data, loader, self._collate(data))

    def begin(self, session: Session) -> None:
        """Make the reference ready."""
        if self._references is not None:
            sets = [(data, self._collate(data)) for data in self._sets]
            self._reference = self._references.begin(session, sets)

    def as_state(self) -> dict[str, Any]:
        """Return which reference it is."""
        return {} if self._references is None else self._references.as_state()

    def count(self, batch: Batch) -> int:
        """Count the pairs."""
        assert isinstance(batch, DirectBatch)
        return batch.num_pairs

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Ask the reference, then turn a micro-batch into the model's arguments."""
        if self._reference is not None:
            assert isinstance(batch, DirectBatch)
            self._reference_said = self._reference.of(batch)
        return model_inputs(batch)

    def _collate(self, data: ComparedSet) -> DirectCollate:
        kept = (lambda *_: None) if self._references is None else self._references.kept
        return DirectCollate(data, self.settings.data.max_length, kept, "mismatched" in self.sequences)

    def said_by_reference(self) -> torch.Tensor:
        """Return the reference's log-probabilities [N] of the answers of the micro-batch that is being run."""
        assert self._reference_said is not None, "the reference was asked before the policy"
        return self._reference_said
