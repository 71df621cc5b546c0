"""A run's checkpoints: saving where it stands, and finding out what ``--load_checkpoint`` means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from colossal_llama2 import cli
from colossal_llama2.engine.checkpoint import begin_checkpoint, load_checkpoint, save_model
from colossal_llama2.engine.checkpoint_folders import checkpoint_name, latest_checkpoint, remove_older
from colossal_llama2.engine.pending_save import PendingSave, SaveError
from colossal_llama2.engine.ranks import barrier, is_first, world_size
from colossal_llama2.engine.running_state import FILE_NAME, RunIdentity, RunningState, describe_changes
from colossal_llama2.engine.session import Session
from colossal_llama2.errors import InputError
from colossal_llama2.model.adapter_files import is_adapter

MODELING = "modeling"
ADAPTER = "adapter"
CRITIC = "critic"
MAX_CONSECUTIVE_FAILURES = 3
"""A disk that is full now may be freed before the next interval; a run that can save no more is not worth going on."""


@dataclass(frozen=True)
class Position:
    """Where a run stands; `rows_consumed` counts rows of the epoch over all ranks."""

    epoch: int = 0
    step: int = 0
    rows_consumed: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class SavePolicy:
    """How checkpoints are written.

    Attributes:
        save_dir: parent of the checkpoints.
        model_files_dir: model folder whose configuration and tokenizer go with the weights.
        keep: how many of the newest stay, 0 for all.
        in_background: copy the state, and write it while training goes on.
        changed_files: texts of small files that go with the weights in the place of the folder's own.
    """

    save_dir: Path
    model_files_dir: Path
    keep: int = 0
    in_background: bool = False
    changed_files: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Checkpoints:
    """Writes a run's checkpoints.

    Every method is called by all ranks at the same point of the run.

    Attributes:
        session: the boosted model.
        policy: where and how.
        identity: what the run is.
        rows_per_step: rows of a global batch.
        watched: returns what those who watch the run must find again; a collective call.
        last: the last whole one written, or resumed from.
    """

    session: Session
    policy: SavePolicy
    identity: RunIdentity
    rows_per_step: int
    watched: Callable[[], dict[str, Any]] = dict
    last: Path | None = None
    _saved: Position | None = None
    _pending: tuple[PendingSave, RunningState, Position] | None = field(default=None, repr=False)
    _failures: int = 0

    def resume(self, state: RunningState, checkpoint_dir: Path) -> Position:
        """Put a checkpoint into the session, and say what is done otherwise from here on."""
        left = load_checkpoint(self.session, state, checkpoint_dir)
        position = Position(state.epoch, state.step, state.rows_consumed, state.tokens)
        if checkpoint_dir.resolve() == self.policy.save_dir.resolve() / checkpoint_name(state.epoch, state.step):
            self._saved = position  # it is here already
        self.last = checkpoint_dir
        cli.say(f"resumed {self.last}: epoch {state.epoch}, step {state.step}, {state.rows_consumed} rows into it")
        for line in (*describe_changes(state, self._state(position)), *left):
            cli.say(line)
        return position

    def save(self, position: Position) -> None:
        """Write a checkpoint of a position, or have it written; one that is under way is waited for first.

        Raises:
            InputError: several saves on end came to nothing.
        """
        if self._pending is not None:
            if not self._pending[0].finished:
                cli.say(f"waiting for {self._pending[0].target.name}, which is still being written")
            self.complete()
        if position == self._saved:
            return
        name = checkpoint_name(position.epoch, position.step)
        policy, state = self.policy, self._state(position)
        pending = begin_checkpoint(
            self.session,
            policy.save_dir,
            name,
            policy.model_files_dir,
            in_background=policy.in_background,
            changed_files=policy.changed_files,
        )
        self._pending = pending, state, position
        if not policy.in_background:
            self.complete()

    def save_and_wait(self, position: Position) -> None:
        """Write a checkpoint before the run is left.

        Raises:
            InputError: it could not be written.
        """
        self.save(position)
        self.complete()
        if self._saved != position:
            raise InputError(
                f"the checkpoint of step {position.step} could not be written; {self.way_back()}",
                path=self.policy.save_dir,
                remedy="free space there before you continue",
            )

    @property
    def written(self) -> bool:
        """Whether this rank has written its part of a checkpoint that is under way."""
        return self._pending is not None and self._pending[0].finished

    def complete(self) -> None:
        """Wait for the checkpoint under way, if there is one, and give it its name; remove those that are not kept.

        Raises:
            InputError: several saves on end came to nothing.
        """
        if self._pending is None:
            return
        (save, state, position), self._pending = self._pending, None
        try:
            save.complete(state)
        except SaveError as error:
            self._failed(save, error)
            return
        self.last, self._saved, self._failures = save.target, position, 0
        if is_first() and self.policy.keep:
            try:
                remove_older(self.policy.save_dir, self.policy.keep)
            except OSError as error:
                cli.warn(f"an older checkpoint could not be removed ({error})")
        barrier()

    def save_model(self, dtype: torch.dtype) -> Path:
        """Write the finished model in `dtype`, or the adapter, once the last checkpoint is whole; return its folder.

        Raises:
            InputError: it could not be written.
        """
        self.complete()
        target = self.policy.save_dir / (MODELING if self.session.adapter is None else ADAPTER)
        try:
            save_model(self.session, target, self.policy.model_files_dir, dtype, self.policy.changed_files)
        except SaveError as error:
            raise InputError(
                f"the finished model could not be written ({error}); {self.way_back()}",
                path=target,
                remedy="free space there, then resume with --load_checkpoint latest",
            ) from None
        return target

    def way_back(self) -> str:
        """Say what a run that is broken off can return to."""
        return "there is no checkpoint yet" if self.last is None else f"the last good checkpoint is {self.last}"

    def _failed(self, save: PendingSave, error: SaveError) -> None:
        self._failures += 1
        what = f"checkpoint {save.target.name} could not be written ({error}); {self.way_back()}"
        if self._failures >= MAX_CONSECUTIVE_FAILURES:
            raise InputError(
                f"{what}; {self._failures} saves on end have failed",
                path=self.policy.save_dir,
                remedy="free space there, then resume with --load_checkpoint latest",
            )
        cli.warn(f"{self.policy.save_dir}: {what}; free space there: the next interval tries again")

    def _state(self, position: Position) -> RunningState:
        return RunningState(
            epoch=position.epoch,
            step=position.step,
            rows_consumed=position.rows_consumed,
            tokens=position.tokens,
            rows_per_step=self.rows_per_step,
            world_size=world_size(),
            plugin=self.session.settings.plugin,
            precision=self.session.settings.precision,
            identity=self.identity,
            scaler=self.session.scaler_state(),
            watched=self.watched(),
        )


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
