"""`train.py --stage sft`: fine-tuning on conversations that `prepare_dataset --type sft` has written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from colossal_llama2.align.chat_templates import check_templates, template_files
from colossal_llama2.align.embedding_noise import EmbeddingNoise
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.engine.session import Session
from colossal_llama2.errors import InputError
from colossal_llama2.train.settings import StageSettings
from colossal_llama2.train.stage import TokenStage
from colossal_llama2.train.supervised import run_stage


@dataclass(frozen=True)
class SftOptions:
    """What is said to fine-tuning alone."""

    neftune_alpha: float = 0.0
    """NEFTune (arXiv 2310.05914): uniform noise on the embeddings of a conversation of L tokens, at most
    alpha / sqrt(L * hidden size), in training only; 5 is the paper's. 0 for none."""


@dataclass(frozen=True)
class SftSettings(StageSettings):
    """Fine-tune a model on conversations: loss on what the assistant says, nothing else.

    Start it alone, or on several ranks with `torchrun` or `colossalai run`.
    """

    stage: Literal["sft"] = "sft"
    """What is done; each stage has flags of its own, which --stage NAME --help tells."""
    sft: SftOptions = field(default_factory=SftOptions)


class Sft(TokenStage):
    """Predict the assistant's tokens of packed conversations; the model leaves with the chat template it learned."""

    name = "sft"
    settings: SftSettings

    def check(self) -> None:
        """Refuse noise that is no amount.

        Raises:
            InputError: naming the flag.
        """
        alpha = self.settings.sft.neftune_alpha
        if not 0 <= alpha < math.inf:
            raise InputError(f"--neftune_alpha is {alpha}", remedy="give 5, say, or 0 for no noise")

    def open_data(self, dirs: Sequence[Path]) -> PreparedCorpus:
        """Open sets of conversations."""
        return PreparedCorpus.open(dirs, types=("sft",))

    def check_together(self, data: PreparedCorpus, evaluated: PreparedCorpus | None, weights_dir: Path) -> None:
        """Refuse sets of several chat templates, and say when the tokenizer has another.

        Raises:
            InputError: there is more than one.
        """
        check_templates(self.settings, data, evaluated, weights_dir)

    def changed_files(self, data: PreparedCorpus) -> dict[str, str]:
        """Let the finished tokenizer have the template of the set."""
        return template_files(self.settings, data)

    def begin(self, session: Session) -> None:
        """Put the noise on the embeddings."""
        options = self.settings.sft
        if options.neftune_alpha:
            EmbeddingNoise(session, options.neftune_alpha, self.settings.optimizer.seed).attach()


def main(settings: SftSettings) -> int:
    """Fine-tune; return 0, or 143 when a SIGTERM ended the run after a checkpoint."""
    return run_stage(Sft(settings))
