"""Checkpoints that are whole or absent, and a final model folder that transformers reads as it is.

SAVE_DIR/epoch-E_step-S/
    modeling/              a model folder: fp32 when training in half precision, because these are the master weights
    optimizer/             Adam's moments, in the layout of ColossalAI's Booster
    lr_scheduler           position in the schedule
    random_states/         one file a rank
    running_states.json    written last
SAVE_DIR/modeling/         the finished model, in the dtype it came in

A save has two halves. `begin_checkpoint` copies the state to host memory, file by file, and hands it to the writers, at
once or for a thread; `PendingSave.complete` waits, lets the ranks agree that all is written, and gives the folder its
name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file

from colossal_llama2.engine import ranks
from colossal_llama2.engine.adapters import snapshot_adapter
from colossal_llama2.engine.booster_files import booster_optimizer, booster_weights
from colossal_llama2.engine.checkpoint_folders import checkpoint_name
from colossal_llama2.engine.gathering import is_gemini
from colossal_llama2.engine.pending_save import PendingSave
from colossal_llama2.engine.running_state import RunningState
from colossal_llama2.engine.session import Session
from colossal_llama2.engine.snapshot import (
    OPTIMIZER_GROUPS,
    OPTIMIZER_INDEX,
    WEIGHTS_INDEX,
    put_weights,
    snapshot_optimizer,
    snapshot_weights,
)
from colossal_llama2.engine.writing import flush, write_pickled, write_text, write_weights
from colossal_llama2.errors import InputError

_NOTHING: Mapping[str, str] = MappingProxyType({})
_STREAMED_PLUGINS: tuple[str, ...] = ("zero2", "zero2_cpu", "ddp", "gemini", "gemini_auto")


def begin_checkpoint(
    session: Session,
    save_dir: Path,
    name: str,
    model_files_dir: Path,
    in_background: bool = False,
    changed_files: Mapping[str, str] = _NOTHING,
) -> PendingSave:
    """Copy everything a resume needs, and have it written; training may go on as soon as this returns.

    Every rank takes part.

    Args:
        session: the boosted model and optimizer.
        save_dir: parent of the checkpoint, seen by every rank.
        name: of the checkpoint, see `checkpoint_name`.
        model_files_dir: model folder whose configuration and tokenizer go beside the weights.
        in_background: hold the copy in host memory and write it in a thread. Takes this rank's share of 12 bytes a
            parameter; without, room for one file.
        changed_files: texts of small files of the model folder that are to be others than in `model_files_dir`.
    """
    save = PendingSave(save_dir / name, in_background)
    write = partial(_complete_model_folder, model_files_dir=model_files_dir, changed_files=changed_files)
    _save_session(session, save, save.work, write)
    for folder, companion in session.companions.items():
        theirs, changed = companion.model_files_dir, companion.changed_files
        write = partial(_complete_model_folder, model_files_dir=theirs, changed_files=changed)
        _save_session(companion.session, save, save.work / folder, write)
    states = [_random_file(save.work, rank) for rank in range(ranks.world_size())]
    save.writing.add(partial(write_weights, states[ranks.rank()], _random_states()))
    save.expected += states
    save.writing.start()
    return save


def save_checkpoint(session: Session, state: RunningState, save_dir: Path, model_files_dir: Path) -> Path:
    """Write everything a resume needs while training waits; return the checkpoint's folder.

    Raises:
        SaveError: it could not be written.
    """
    save = begin_checkpoint(session, save_dir, checkpoint_name(state.epoch, state.step), model_files_dir)
    save.complete(state)
    return save.target


def save_model(
    session: Session,
    target: Path,
    model_files_dir: Path,
    dtype: torch.dtype,
    changed_files: Mapping[str, str] = _NOTHING,
) -> None:
    """Write the finished model as a complete model folder in `dtype`, replacing one that a former run left there.

    Raises:
        SaveError: it could not be written.
    """
    save = PendingSave(target, in_background=False)
    write = partial(_complete_model_folder, model_files_dir=model_files_dir, changed_files=changed_files)
    _save_modeling(session, save, save.work, write, dtype)
    save.writing.start()
    save.complete()


def _save_session(
    session: Session, save: PendingSave, folder: Path, complete: Callable[[Path, torch.dtype], None]
) -> None:
    """Write weights, moments and the position in the schedule."""
    _save_modeling(session, save, folder / "modeling", complete, dtype=None)
    if session.settings.plugin in _STREAMED_PLUGINS:
        save.expected += snapshot_optimizer(session, folder / "optimizer", save.writing)
    else:
        save.expected += booster_optimizer(session, folder / "optimizer")
    if ranks.is_first():
        save.writing.add(partial(write_pickled, folder / "lr_scheduler", session.scheduler.state_dict()))
    save.expected.append(folder / "lr_scheduler")


def _save_modeling(
    session: Session,
    save: PendingSave,
    folder: Path,
    complete: Callable[[Path, torch.dtype], None],
    dtype: torch.dtype | None,
) -> None:
    """Write the model folder of a checkpoint (`dtype` None: as exact as it is) or of the finished model."""
    if session.adapter is not None:
        save.expected += snapshot_adapter(session, folder, save.writing)
        return
    write = snapshot_weights if session.settings.plugin in _STREAMED_PLUGINS else booster_weights
    files, stored = write(session, folder, save.writing, dtype)
    save.expected += files
    if ranks.is_first():
        save.writing.add(partial(complete, folder, stored))


def _load_modeling(session: Session, folder: Path) -> None:
    """Read the model folder of a checkpoint into weights and masters."""
    _refuse_missing_weights(session, folder)
    if session.settings.plugin in _STREAMED_PLUGINS and not is_gemini(session):
        put_weights(session, folder)
        return
    with session.saved_weights.in_place():
        # Not strict: that would miss the second name of a tied weight, or trip over it, depending on the plugin.
        session.booster.load_model(session.model, str(folder), strict=False)


def load_checkpoint(session: Session, state: RunningState, checkpoint_dir: Path) -> list[str]:
    """Put a checkpoint's weights, moments, position in the schedule, loss scale and random states into a fresh session.

    It may come from another plugin, precision or number of ranks. Learning rate, decay and betas are the session's own,
    which a checkpoint does not overrule.

    Returns:
        What of it could not be taken up, a sentence each.

    Raises:
        InputError: it lacks weights that the model has, or files.
    """
    left = _load_session(session, checkpoint_dir)
    for folder, companion in session.companions.items():
        left += [f"{folder}: {sentence}" for sentence in _load_session(companion.session, checkpoint_dir / folder)]
    if state.scaler and session.scaler_state():
        session.load_scaler_state(state.scaler)
    elif session.scaler_state():
        left.append("it has no loss scale, so the scale begins anew")
    elif state.scaler:
        left.append("its loss scale is for fp16 alone")
    return left + _load_random_state(checkpoint_dir, state.world_size)


def _load_session(session: Session, folder: Path) -> list[str]:
    """Put weights, moments and the position in the schedule back; return what could not be taken up."""
    for name in (OPTIMIZER_INDEX, OPTIMIZER_GROUPS):
        if not (folder / "optimizer" / name).is_file():
            raise InputError(
                "is missing",
                path=folder / "optimizer" / name,
                remedy="use another checkpoint, or pass its modeling folder to take the weights alone",
            )
    if session.adapter is None:  # an adapter's numbers are in the model since before it was boosted
        _load_modeling(session, folder / "modeling")
    left = _load_optimizer(session, folder / "optimizer")
    session.booster.load_lr_scheduler(session.scheduler, str(folder / "lr_scheduler"))
    session.apply_settings()
    return left


def _load_optimizer(session: Session, folder: Path) -> list[str]:
    saved = torch.load(folder / OPTIMIZER_GROUPS, weights_only=True)
    inner = session.optimizer.unwrap()
    backup = getattr(session.optimizer, "param_groups_backup", None)  # Gemini's own groups lack other ranks' shards
    theirs = [len(group["params"]) for group in saved]
    ours = [len(group["params"]) for group in (inner.param_groups if backup is None else backup)]
    if sum(theirs) and theirs != ours and session.settings.plugin in _STREAMED_PLUGINS:
        return [f"its optimizer state is for groups of {theirs} parameters, not {ours}, so the moments begin at zero"]
    session.booster.load_optimizer(session.optimizer, str(folder))
    for parameter_state in inner.state.values():  # torch keeps the step as a tensor, ColossalAI's Adam as a number
        if isinstance(parameter_state.get("step"), torch.Tensor):
            parameter_state["step"] = int(parameter_state["step"].item())
    return []


def _refuse_missing_weights(session: Session, model_dir: Path) -> None:
    index = model_dir / WEIGHTS_INDEX
    try:
        held = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot be read ({error})", path=index, remedy="use another checkpoint") from None
    missing = [name for name in session.parameter_names if name not in held]
    if missing:
        raise InputError(
            f"lacks {len(missing)} weights, {missing[0]} first", path=index, remedy="use an older checkpoint"
        )


def _complete_model_folder(
    folder: Path, dtype: torch.dtype, model_files_dir: Path, changed_files: Mapping[str, str]
) -> None:
    """Add configuration and tokenizer to saved weights, and state the dtype that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(model_files_dir.iterdir()):
        if path.is_file() and path.name != "settings.yaml" and not _is_weight_file(path.name):
            shutil.copyfile(path, folder / path.name)
            flush(folder / path.name)
    for name, text in changed_files.items():
        write_text(folder / name, text)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _is_weight_file(name: str) -> bool:
    """Tell weights and their indexes from the small files of a model folder."""
    return name.endswith((".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".index.json"))


def _random_file(checkpoint_dir: Path, rank: int) -> Path:
    return checkpoint_dir / "random_states" / f"rank-{rank:05d}.safetensors"


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _load_random_state(checkpoint_dir: Path, saved_world_size: int) -> list[str]:
    """Give each rank its random state back; every rank must find its own, or none takes any."""
    here = ranks.world_size()
    if saved_world_size != here:
        return [f"saved by {saved_world_size} ranks, continued by {here}: dropout draws other numbers"]
    path = _random_file(checkpoint_dir, ranks.rank())
    missing = ranks.sum_over_ranks(float(not path.is_file()))[0]
    if missing:
        return [f"the random states of {missing:.0f} ranks are missing in it: dropout draws other numbers"]
    states = load_file(path)
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    return []
