"""Saving what a LoRA run trains, and nothing else, wherever its parts lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from colossal_llama2.engine import ranks
from colossal_llama2.model.adapter_files import WEIGHTS_FILE, weights_fingerprint, write_small_files
from colossal_llama2.model.lora import LoraPlan, trained_parameters

if TYPE_CHECKING:
    from colossal_llama2.engine.session import Session


@dataclass(frozen=True)
class Adapter:
    """What a session trains beside its frozen base.

    Attributes:
        plan: the adapter; its shapes name every tensor that must be in a saved file.
        base_model_dir: the base, whose tokenizer goes with the adapter.
        base_fingerprint: of its weights.
    """

    plan: LoraPlan
    base_model_dir: Path
    base_fingerprint: str

    @classmethod
    def of(cls, plan: LoraPlan, base_model_dir: Path) -> Adapter:
        """Describe an adapter on a base."""
        return cls(plan, base_model_dir, weights_fingerprint(base_model_dir))


def attach_adapter(session: Session, adapter: Adapter) -> None:
    """Tell a boosted session that it trains an adapter; its checkpoints hold that alone from now on.

    What boosting left with the ranks must together be what was planned: found out now, not at the first checkpoint.
    """
    session.adapter = adapter
    own = {name: tuple(p.shape) for name, p in trained_parameters(session.model.unwrap()).items()}
    of_ranks: list[dict[str, tuple[int, ...]]] = [{} for _ in range(ranks.world_size())]
    dist.all_gather_object(of_ranks, own)
    _refuse_difference({name: shape for shapes in of_ranks for name, shape in shapes.items()}, adapter)


def save_adapter(session: Session, folder: Path) -> None:
    """Write the adapter in peft's format, from the fp32 master weights; every rank takes part.

    Ranks of a pipeline hold different layers. Each writes what no rank before it holds into a file of its own, and the
    first rank makes one file of them; one tensor too few or in another shape than planned, and nothing is saved.

    Args:
        session: with a LoRA model and its `Adapter`.
        folder: a folder that all ranks see; it may exist.
    """
    adapter = session.adapter
    assert adapter is not None
    if ranks.is_first():
        folder.mkdir(exist_ok=True)
    ranks.barrier()
    tensors = _own_share(session)
    if tensors:
        save_file(tensors, _share(folder, ranks.rank()), metadata={"format": "pt"})
    ranks.barrier()
    if ranks.is_first():
        _join_shares(folder, adapter)
        write_small_files(
            folder, adapter.plan.config(adapter.base_model_dir), adapter.base_model_dir, adapter.base_fingerprint
        )
    ranks.barrier()


def _own_share(session: Session) -> dict[str, torch.Tensor]:
    """Return this rank's trained tensors, in fp32 on the CPU, that no rank before it holds."""
    with session.saved_weights.in_place():
        held = {name: p.detach() for name, p in trained_parameters(session.model.unwrap()).items()}
        names_of_ranks: list[list[str]] = [[] for _ in range(ranks.world_size())]
        dist.all_gather_object(names_of_ranks, list(held))
        before = {name for names in names_of_ranks[: ranks.rank()] for name in names}
        # a copy: a master is gone, or half precision again, when the context is left
        return {name: value.float().cpu().clone() for name, value in held.items() if name not in before}


def _join_shares(folder: Path, adapter: Adapter) -> None:
    paths = [path for rank in range(ranks.world_size()) if (path := _share(folder, rank)).is_file()]
    joined = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    _refuse_difference({name: tuple(tensor.shape) for name, tensor in joined.items()}, adapter)
    save_file({name: joined[name] for name in adapter.plan.shapes}, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / WEIGHTS_FILE).chmod(folder.stat().st_mode & 0o666)  # safetensors lets only the owner read
    for path in paths:
        path.unlink()


def _refuse_difference(shapes: Mapping[str, tuple[int, ...]], adapter: Adapter) -> None:
    planned = adapter.plan.shapes
    if shapes != planned:
        wrong = sorted(name for name in {*shapes, *planned} if shapes.get(name) != planned.get(name))
        raise RuntimeError(
            f"the ranks hold {len(shapes)} of the adapter's {len(planned)} tensors; "
            f"missing, unknown or of another shape: {', '.join(wrong[:4])}"
        )


def _share(folder: Path, rank: int) -> Path:
    return folder / f".share-{rank:05d}.safetensors"
