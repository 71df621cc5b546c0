"""Checkpoints that are whole or absent, and a final model folder that transformers reads as it is.

SAVE_DIR/epoch-E_step-S/
    modeling/              a model folder: fp32 when training in half precision, because these are the master weights
    optimizer/             ColossalAI's sharded optimizer state
    lr_scheduler           position in the schedule
    random_states/         one file a rank
    running_states.json    written last
SAVE_DIR/modeling/         the finished model, in the dtype it came in
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from colossal_llama2.engine import ranks
from colossal_llama2.engine.adapters import save_adapter
from colossal_llama2.engine.running_state import FILE_NAME, RunningState, write_running_state
from colossal_llama2.engine.session import Session
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import flush_tree, replace_directory

_NAME = re.compile(r"epoch-(\d+)_step-(\d+)")
_SHARD_MEGABYTES = 1024


def checkpoint_name(epoch: int, step: int) -> str:
    """Folder name of a checkpoint."""
    return f"epoch-{epoch}_step-{step}"


def whole_checkpoints(save_dir: Path) -> list[Path]:
    """Return the whole checkpoints of a folder, oldest first; half-written ones have other names and are not seen."""
    found = [(match, path) for path in save_dir.glob("epoch-*_step-*") if (match := _NAME.fullmatch(path.name))]
    whole = [(int(match[2]), int(match[1]), path) for match, path in found if (path / FILE_NAME).is_file()]
    return [path for _, _, path in sorted(whole)]


def latest_checkpoint(save_dir: Path) -> Path:
    """Return the newest whole checkpoint.

    Raises:
        InputError: there is none.
    """
    whole = whole_checkpoints(save_dir)
    if not whole:
        raise InputError("no whole checkpoint here", path=save_dir, remedy="leave --load_checkpoint out to start anew")
    return whole[-1]


def save_checkpoint(session: Session, state: RunningState, save_dir: Path, model_files_dir: Path) -> Path:
    """Write everything a resume needs; the folder takes its name only when every rank has finished writing.

    Args:
        session: the boosted model and optimizer.
        state: where the run stands.
        save_dir: parent of the checkpoint, seen by every rank.
        model_files_dir: model folder whose configuration and tokenizer go beside the weights.

    Returns:
        The checkpoint's folder.
    """
    target = save_dir / checkpoint_name(state.epoch, state.step)
    work = _begin(target)
    _save_weights(session, work / "modeling")
    session.complete_optimizer_state()
    session.booster.save_optimizer(session.optimizer, str(work / "optimizer"), shard=True)
    session.booster.save_lr_scheduler(session.scheduler, str(work / "lr_scheduler"))
    _save_random_state(work / "random_states")
    ranks.barrier()
    if ranks.is_first():
        _complete_model_folder(session, work / "modeling", model_files_dir, dtype=None)
        write_running_state(state, work)
        flush_tree(work)
        replace_directory(work, target)
    ranks.barrier()
    return target


def load_checkpoint(session: Session, state: RunningState, checkpoint_dir: Path) -> bool:
    """Put a checkpoint's weights, moments, position in the schedule, loss scale and random states into a fresh session.

    Learning rate, decay and betas are the session's own, which a checkpoint does not overrule.

    Returns:
        True when every rank got its own random state back; False when the number of ranks differs, so that dropout, if
        the model has any, draws other numbers than the uninterrupted run would have.

    Raises:
        InputError: it lacks weights that the model has.
    """
    if session.adapter is None:  # an adapter's numbers are in the model since before it was boosted
        _refuse_missing_weights(session, checkpoint_dir / "modeling")
        with session.saved_weights.in_place():
            # Not strict: that would miss the second name of a tied weight, or trip over it, depending on the plugin.
            session.booster.load_model(session.model, str(checkpoint_dir / "modeling"), strict=False)
    session.booster.load_optimizer(session.optimizer, str(checkpoint_dir / "optimizer"))
    session.booster.load_lr_scheduler(session.scheduler, str(checkpoint_dir / "lr_scheduler"))
    session.apply_settings()
    session.load_scaler_state(state.scaler)
    return _load_random_state(checkpoint_dir / "random_states", state.world_size)


def _refuse_missing_weights(session: Session, model_dir: Path) -> None:
    index = model_dir / "model.safetensors.index.json"
    held = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    missing = [name for name in session.parameter_names if name not in held]
    if missing:
        raise InputError(
            f"lacks {len(missing)} weights, {missing[0]} first", path=index, remedy="use an older checkpoint"
        )


def save_model(session: Session, target: Path, model_files_dir: Path, dtype: torch.dtype) -> None:
    """Write the finished model as a complete model folder in `dtype`, replacing one that a former run left there."""
    work = _begin(target)
    _save_weights(session, work)
    ranks.barrier()
    if ranks.is_first():
        _complete_model_folder(session, work, model_files_dir, dtype)
        flush_tree(work)
        replace_directory(work, target)
    ranks.barrier()


def _begin(target: Path) -> Path:
    work = target.with_name(f".{target.name}.partial")
    if ranks.is_first():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    ranks.barrier()
    return work


def _save_weights(session: Session, folder: Path) -> None:
    if session.adapter is not None:
        save_adapter(session, folder)
        return
    if ranks.is_first():
        folder.mkdir(exist_ok=True)
    ranks.barrier()
    with session.saved_weights.in_place():
        session.booster.save_model(
            session.model, str(folder), shard=True, size_per_shard=_SHARD_MEGABYTES, use_safetensors=True
        )


def _complete_model_folder(session: Session, folder: Path, model_files_dir: Path, dtype: torch.dtype | None) -> None:
    """Add configuration and tokenizer to saved weights, cast them if asked, and state the dtype that is there."""
    if session.adapter is not None:
        return  # an adapter is saved with all that belongs to it
    weights = sorted(folder.glob("*.safetensors"))
    for path in weights:
        if dtype is not None or session.frozen_weights:
            tensors = {name: session.frozen_weights.get(name, tensor) for name, tensor in load_file(path).items()}
            tensors = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}
            save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o666 & ~_umask())  # safetensors writes files that only their owner may read
    index = folder / "model.safetensors.index.json"
    if index.is_file() and dtype is not None:
        content = json.loads(index.read_text())
        content.setdefault("metadata", {})["total_size"] = sum(path.stat().st_size for path in weights)
        index.write_text(json.dumps(content, indent=2) + "\n")
    for path in sorted(model_files_dir.iterdir()):
        if path.is_file() and path.name != "settings.yaml" and not _is_weight_file(path.name):
            shutil.copyfile(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype or _widest_dtype(weights)).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _widest_dtype(weights: list[Path]) -> torch.dtype:
    """Return the dtype that holds every tensor of the files exactly: frozen weights may be narrower than masters."""
    widest: torch.dtype | None = None
    for path in weights:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  a safetensors file is no dict
                dtype = file.get_slice(name)[:0].dtype
                widest = dtype if widest is None else torch.promote_types(widest, dtype)
    return widest or torch.float32


def _is_weight_file(name: str) -> bool:
    """Tell weights and their indexes from the small files of a model folder."""
    return name.endswith((".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".index.json"))


def _save_random_state(folder: Path) -> None:
    if ranks.is_first():
        folder.mkdir(exist_ok=True)
    ranks.barrier()
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    save_file(states, folder / f"rank-{ranks.rank():05d}.safetensors")


def _load_random_state(folder: Path, saved_world_size: int) -> bool:
    if saved_world_size != ranks.world_size():
        return False
    states = load_file(folder / f"rank-{ranks.rank():05d}.safetensors")
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    return True
