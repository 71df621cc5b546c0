"""What a run writes where, what it refuses to write over, and what ``--overwrite`` may discard."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from colossal_llama2 import cli
from colossal_llama2.engine.checkpoint_folders import (
    clear_leftovers,
    newer_checkpoints,
    remove_checkpoint,
    set_aside,
    whole_checkpoints,
)
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import whole_file
from colossal_llama2.train.checkpoints import ADAPTER, CRITIC, MODELING, StartingPoint
from colossal_llama2.train.run_log import METRICS_FILE
from colossal_llama2.train.settings import StageSettings


def check_folders(settings: StageSettings, start: StartingPoint, also_read: Sequence[Path] = ()) -> None:
    """Refuse outputs that cannot be written, or that are another run's; changes nothing.

    A checkpoint may be continued in its own folder; anywhere else it is a new run like any other.

    Args:
        settings: the run's.
        start: where its weights come from.
        also_read: folders that it reads besides what every stage does.

    Raises:
        InputError: a folder is a file or cannot be made, holds an earlier run without ``--overwrite``, or holds an
            input among what ``--overwrite`` would discard.
    """
    output = settings.output
    for folder in (output.save_dir, settings.run_dir):
        _refuse_unwritable(folder)
    if output.config_file is not None:
        if output.config_file.is_dir():
            raise InputError("is a folder", path=output.config_file, remedy="name a file for --config_file")
        _refuse_unwritable(output.config_file.parent)
    if _continues_here(settings, start):
        return
    former = list(_former_run(settings, start))
    if former and not output.overwrite:
        raise InputError(
            f"holds an earlier run ({former[0].name})",
            path=former[0].parent,
            remedy="resume it with --load_checkpoint latest, choose another folder, or pass --overwrite",
        )
    evaluated = settings.evaluation.eval_dataset
    own = (settings.model.pretrained, start.weights_dir, start.adapter_dir, *settings.data.dataset, *evaluated)
    for source in filter(None, (*own, *also_read)):
        for path in former:
            if source.resolve().is_relative_to(path.resolve()):
                raise InputError(
                    "is read by this run and would be discarded by --overwrite",
                    path=source,
                    remedy="choose another --save_dir",
                )


def prepare_folders(settings: StageSettings, start: StartingPoint) -> None:
    """Discard what `check_folders` let pass, make the folders, and write the settings down; for one rank alone."""
    output = settings.output
    output.save_dir.mkdir(parents=True, exist_ok=True)
    clear_leftovers(output.save_dir)
    if _continues_here(settings, start):
        _set_newer_aside(start)
    else:
        for path in _former_run(settings, start):
            _discard(path)
    for file in filter(None, (output.save_dir / "settings.yaml", output.config_file)):
        with whole_file(file, overwrite=True) as work:
            work.write_text(settings_to_repeat(settings, start), encoding="utf-8")


def settings_to_repeat(settings: StageSettings, start: StartingPoint) -> str:
    """Write a run's settings as YAML for ``--config``, with what is not to be done again by itself as a remark.

    That is discarding an earlier run, and resuming a checkpoint. Weights to start from stay: they are an input.
    """
    once = []
    if settings.output.overwrite:
        once.append("--overwrite")
        settings = replace(settings, output=replace(settings.output, overwrite=False))
    if start.checkpoint_dir is not None:
        once.append(f"--load_checkpoint {settings.model.load_checkpoint}")
        settings = replace(settings, model=replace(settings.model, load_checkpoint=""))
    remark = " ".join(f"# started with {' '.join(once)}, which --config does not repeat".split()) + "\n" if once else ""
    return remark + cli.as_yaml(settings)


def _set_newer_aside(start: StartingPoint) -> None:
    """Keep the checkpoints of a branch that is given up from being taken for this one's newest."""
    assert start.checkpoint_dir is not None
    for checkpoint in newer_checkpoints(start.checkpoint_dir.resolve()):
        aside = set_aside(checkpoint)
        cli.warn(
            f"{checkpoint} is newer than the checkpoint resumed, so of a course that is given up: renamed to "
            f"{aside.name}; resume it by that name, or delete it"
        )


def _discard(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink()
    elif path.name in (MODELING, CRITIC):
        shutil.rmtree(path)
    else:
        remove_checkpoint(path)


def _continues_here(settings: StageSettings, start: StartingPoint) -> bool:
    checkpoint = start.checkpoint_dir
    return checkpoint is not None and checkpoint.resolve().parent == settings.output.save_dir.resolve()


def _former_run(settings: StageSettings, start: StartingPoint) -> Iterator[Path]:
    """Yield what an earlier run left: checkpoints, model, metrics; never anything else that lies beside them.

    A checkpoint continued in another folder goes on with the metrics that are there.
    """
    save_dir, run_dir = settings.output.save_dir, settings.run_dir
    yield from whole_checkpoints(save_dir)
    for model in (save_dir / MODELING, save_dir / ADAPTER, save_dir / CRITIC):
        if model.exists() or model.is_symlink():
            yield model
    if start.checkpoint_dir is None and (run_dir / METRICS_FILE).exists():
        yield run_dir / METRICS_FILE
        yield from run_dir.glob("events.out.tfevents.*")


def _refuse_unwritable(folder: Path) -> None:
    """Find the nearest folder that is there, and see whether it can be written."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError("is not a folder", path=there, remedy="choose another name for the output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError("cannot be written", path=there, remedy="choose another folder for the output")
