"""`train.py --stage distill`: learning what a larger model of the same vocabulary finds likely, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from colossal_llama2 import cli
from colossal_llama2.align.chat_templates import check_templates, template_files
from colossal_llama2.align.direct_settings import check_undivided, refuse_out_of_range
from colossal_llama2.align.distill_losses import Distillation, distill_sums
from colossal_llama2.align.frozen import FrozenModel
from colossal_llama2.dataset.batches import Batch
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.engine import ranks
from colossal_llama2.engine.precision import DTYPES
from colossal_llama2.engine.running_state import read_running_state
from colossal_llama2.engine.session import CrossEntropies, Session
from colossal_llama2.errors import InputError
from colossal_llama2.model.adapter_files import weights_fingerprint
from colossal_llama2.model.belonging import check_belongs
from colossal_llama2.model.pretrained import load_for_training
from colossal_llama2.model.quantized import refuse_quantized
from colossal_llama2.model.scalar_head import is_scorer
from colossal_llama2.tokenizer.loading import tokenizer_fingerprint
from colossal_llama2.train.checkpoints import find_starting_point
from colossal_llama2.train.folders import check_folders
from colossal_llama2.train.settings import StageSettings
from colossal_llama2.train.stage import LossSums, Stage, model_inputs
from colossal_llama2.train.supervised import run_stage

_STATE = "teacher"


@dataclass(frozen=True)
class DistillOptions:
    """What is said to distillation alone."""

    teacher: Path | None = None
    """Model folder to learn from, of the same tokenizer; its widths and depth may be others."""
    distill_temperature: float = 1.0
    """Both models' logits are divided by it; the KL is multiplied by its square, so that gradients keep their size."""
    distill_ce_weight: float = 0.0
    """Share of the cross-entropy with the set's own tokens; the rest is the KL."""


@dataclass(frozen=True)
class DistillSettings(StageSettings):
    """Learn a teacher's distribution at every learned token of a corpus or of conversations (forward KL).

    Start it alone, or on several ranks with `torchrun` or `colossalai run`.
    """

    stage: Literal["distill"] = "distill"
    """What is done; each stage has flags of its own, which --stage NAME --help tells."""
    distill: DistillOptions = field(default_factory=DistillOptions)


class Distill(Stage):
    """Say what the teacher says."""

    name = "distill"
    figure_names = ("kl", "cross_entropy")
    settings: DistillSettings

    def __init__(self, settings: DistillSettings) -> None:
        super().__init__(settings)
        self._teacher: FrozenModel | None = None
        self._fingerprint = ""
        self._teacher_logits: torch.Tensor | None = None  # of the micro-batch that is being run

    @property
    def teacher_dir(self) -> Path:
        """The teacher's folder."""
        assert self.settings.distill.teacher is not None, "checked at the start"
        return self.settings.distill.teacher

    def check(self) -> None:
        """Refuse what cannot be distilled.

        Raises:
            InputError: naming the flag.
        """
        options, parallel = self.settings.distill, self.settings.parallel
        check_undivided(self.settings, self.name)
        if options.teacher is None:
            raise InputError("--stage distill without --teacher", remedy="name the model folder to learn from")
        refuse_out_of_range({"distill_temperature": options.distill_temperature}, above_zero=True)
        if not 0 <= options.distill_ce_weight < 1:
            raise InputError(
                f"--distill_ce_weight is {options.distill_ce_weight}",
                remedy="give a share from 0 to below 1; at 1 nothing is learned from the teacher (--stage sft)",
            )
        if parallel.tp > 1:
            raise InputError(
                f"--tp {parallel.tp} divides the vocabulary, and the KL is taken over all of it on a rank",
                remedy="leave --tp at 1; zero2 and gemini divide the student's memory",
            )

    def open_data(self, dirs: Sequence[Path]) -> PreparedCorpus:
        """Open corpora, or sets of conversations."""
        return PreparedCorpus.open(dirs)

    def check_together(self, data: PreparedCorpus, evaluated: PreparedCorpus | None, weights_dir: Path) -> None:
        """Refuse a teacher that speaks another vocabulary, or another one than a checkpoint was made with.

        Raises:
            InputError: naming it.
        """
        check_templates(self.settings, data, evaluated, weights_dir)
        check_belongs(self.teacher_dir)
        refuse_quantized(self.teacher_dir, "would teach its rounding")
        if is_scorer(self.teacher_dir):
            raise InputError(
                "scores texts, and has no head that predicts tokens",
                path=self.teacher_dir,
                remedy="name a language model with --teacher",
            )
        if tokenizer_fingerprint(self.teacher_dir) != data.tokenizer_fingerprint:
            raise InputError(
                "the teacher's tokenizer is another one than the student's",
                path=self.teacher_dir,
                remedy="name a teacher of the same vocabulary: its tokens are what is learned",
            )
        self._fingerprint = weights_fingerprint(self.teacher_dir)
        model, output = self.settings.model, self.settings.output
        start = find_starting_point(model.pretrained, model.load_checkpoint, output.save_dir)
        check_folders(self.settings, start, (self.teacher_dir,))
        if start.checkpoint_dir is not None:
            known = read_running_state(start.checkpoint_dir).watched.get(_STATE)
            if known != self._fingerprint:
                raise InputError(
                    "was made with another teacher",
                    path=start.checkpoint_dir,
                    remedy="name that one, or pass the checkpoint's modeling folder to take the weights alone",
                )

    def changed_files(self, data: PreparedCorpus) -> dict[str, str]:
        """Let the finished tokenizer have the template of a set of conversations."""
        return template_files(self.settings, data)

    def begin(self, session: Session) -> None:
        """Load the teacher, whole on every rank."""
        parallel = self.settings.parallel
        dtype = DTYPES[parallel.mixed_precision]
        model = load_for_training(self.teacher_dir, parallel.mixed_precision, self.settings.model.use_flash_attn)
        numel = sum(parameter.numel() for parameter in model.parameters())
        self._teacher = FrozenModel(model, dtype, offload=False)
        gigabytes = numel * dtype.itemsize / 1e9
        cli.say(
            f"teacher: {numel:,} parameters in {parallel.mixed_precision}, whole on every rank: {gigabytes:.2f} GB "
            "beside what is predicted for the student"
        )

    def as_state(self) -> dict[str, Any]:
        """Return which teacher it is."""
        return {_STATE: self._fingerprint}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Ask the teacher, then turn a micro-batch into the model's arguments."""
        assert self._teacher is not None
        arguments = model_inputs(batch)
        with self._teacher.ready() as forward:
            self._teacher_logits = forward(**arguments).logits
        return arguments

    def loss_sums(self, output: Any, batch: Batch, cross_entropies: CrossEntropies) -> LossSums:
        """Add up the KL, and the cross-entropy's share, of all learned tokens."""
        said, self._teacher_logits = self._teacher_logits, None
        assert said is not None, "the teacher was asked before the student"
        rows = min(said.shape[-1], output.logits.shape[-1])  # what one has more stands for no token
        options = self.settings.distill
        how = Distillation(options.distill_temperature, kl_share=1.0 - options.distill_ce_weight)
        labels = ranks.on_device(batch.labels)
        sums = distill_sums(output.logits[..., :rows], said[..., :rows], labels, how)
        return LossSums(sums.loss, {"kl": sums.kl, "cross_entropy": sums.cross_entropy})


def main(settings: DistillSettings) -> int:
    """Train; return 0, or 143 when a SIGTERM ended the run after a checkpoint."""
    return run_stage(Distill(settings))
