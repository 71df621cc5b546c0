"""`train.py --stage pretrain`: continued pretraining on a prepared corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.train.settings import TrainSettings
from colossal_llama2.train.stage import TokenStage
from colossal_llama2.train.supervised import run_stage


class Pretraining(TokenStage):
    """Predict every learned token of spliced rows."""

    name = "pretrain"

    def open_data(self, dirs: Sequence[Path]) -> PreparedCorpus:
        """Open prepared corpora; sets of conversations are read as well."""
        return PreparedCorpus.open(dirs)


def main(settings: TrainSettings) -> int:
    """Train; return 0, or 143 when a SIGTERM ended the run after a checkpoint."""
    return run_stage(Pretraining(settings))
