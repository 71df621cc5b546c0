"""A run's checkpoints: saving where it stands, and finding out what ``--load_checkpoint`` means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colossal_llama2.engine.checkpoint import latest_checkpoint, save_checkpoint
from colossal_llama2.engine.ranks import world_size
from colossal_llama2.engine.running_state import FILE_NAME, RunIdentity, RunningState
from colossal_llama2.engine.session import Session
from colossal_llama2.errors import InputError
from colossal_llama2.model.adapter_files import is_adapter

MODELING = "modeling"
ADAPTER = "adapter"


@dataclass(frozen=True)
class Position:
    """Where a run stands; `rows_consumed` counts rows of the epoch over all ranks."""

    epoch: int = 0
    step: int = 0
    rows_consumed: int = 0
    tokens: int = 0


@dataclass
class Checkpoints:
    """Writes a run's checkpoints.

    Attributes:
        session: the boosted model.
        save_dir: parent of the checkpoints.
        model_files_dir: model folder whose configuration and tokenizer go with the weights.
        identity: what the run is.
        rows_per_step: rows of a global batch.
        last: the last one written, or resumed from.
    """

    session: Session
    save_dir: Path
    model_files_dir: Path
    identity: RunIdentity
    rows_per_step: int
    last: Path | None = None

    def save(self, position: Position) -> Path:
        """Write a checkpoint of a position; every rank takes part."""
        state = RunningState(
            epoch=position.epoch,
            step=position.step,
            rows_consumed=position.rows_consumed,
            tokens=position.tokens,
            rows_per_step=self.rows_per_step,
            world_size=world_size(),
            identity=self.identity,
            scaler=self.session.scaler_state(),
        )
        self.last = save_checkpoint(self.session, state, self.save_dir, self.model_files_dir)
        return self.last


@dataclass(frozen=True)
class StartingPoint:
    """What ``--load_checkpoint`` stands for.

    Attributes:
        weights_dir: model folder the weights come from.
        checkpoint_dir: checkpoint to resume in full, or None to start a new run from the weights.
        adapter_dir: adapter to go on with, on the weights of `weights_dir`.
    """

    weights_dir: Path
    checkpoint_dir: Path | None
    adapter_dir: Path | None = None


def find_starting_point(pretrained: Path, load_checkpoint: str, save_dir: Path) -> StartingPoint:
    """Tell a full resume from a start with given weights.

    Raises:
        InputError: the path is neither a checkpoint nor a model folder, or ``latest`` finds nothing.
    """
    if not load_checkpoint:
        return StartingPoint(pretrained, None)
    path = latest_checkpoint(save_dir) if load_checkpoint == "latest" else Path(load_checkpoint)
    if (path / FILE_NAME).is_file():
        if is_adapter(path / MODELING):
            return StartingPoint(pretrained, path, path / MODELING)
        return StartingPoint(path / MODELING, path)
    if is_adapter(path):
        return StartingPoint(pretrained, None, path)
    if (path / "config.json").is_file():
        return StartingPoint(path, None)
    raise InputError(
        "neither a checkpoint nor a model folder nor an adapter",
        path=path,
        remedy="name an epoch-E_step-S folder to resume, its modeling folder for the weights alone, or `latest`",
    )
