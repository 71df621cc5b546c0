"""Saving what a LoRA run trains, and nothing else, wherever its parts lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from colossal_llama2.engine import ranks
from colossal_llama2.engine.master_weights import boosted_module
from colossal_llama2.engine.writing import Writing, write_text, write_weights
from colossal_llama2.model.adapter_files import CONFIG_FILE, WEIGHTS_FILE, weights_fingerprint, write_small_files
from colossal_llama2.model.lora import LoraPlan, adapter_key
from colossal_llama2.tokenizer.folder import TOKENIZER_FILES

if TYPE_CHECKING:
    from colossal_llama2.engine.session import Session


@dataclass(frozen=True)
class Adapter:
    """What a session trains beside its frozen base.

    Attributes:
        plan: the adapter; its shapes name every tensor that must be in a saved file.
        base_model_dir: the base, whose tokenizer goes with the adapter.
        base_fingerprint: of its weights.
        changed_files: texts of tokenizer files that are to be others than the base's.
    """

    plan: LoraPlan
    base_model_dir: Path
    base_fingerprint: str
    changed_files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: LoraPlan, base_model_dir: Path, changed_files: Mapping[str, str]) -> Adapter:
        """Describe an adapter on a base; of the files changed those of the tokenizer count."""
        changed = {name: text for name, text in changed_files.items() if name in TOKENIZER_FILES}
        return cls(plan, base_model_dir, weights_fingerprint(base_model_dir), changed)


def attach_adapter(session: Session, adapter: Adapter) -> None:
    """Tell a boosted session that it trains an adapter; its checkpoints hold that alone from now on.

    What boosting left with the ranks must together be what was planned: found out now, not at the first checkpoint.

    Raises:
        RuntimeError: on every rank, when it is not.
    """
    session.adapter = adapter
    held = [name for name, p in boosted_module(session.model).named_parameters() if p.requires_grad]
    of_ranks: list[list[str]] = [[] for _ in range(ranks.world_size())]
    dist.all_gather_object(of_ranks, [adapter_key(name) for name in held])
    # a tied weight has one name in the plan, and both at the ends of a pipeline
    found = {name for names in of_ranks for name in names if name in adapter.plan.shapes or "lora_" in name}
    _refuse_difference(dict.fromkeys(found, ()), dict.fromkeys(adapter.plan.shapes, ()))


def snapshot_adapter(session: Session, folder: Path, writing: Writing) -> list[Path]:
    """Hand an adapter in peft's format, from the fp32 master weights, to the writers; a collective call.

    Ranks of a pipeline hold different layers, and those of tensor parallelism parts of a layer: all of it comes to the
    first rank, which writes.

    Args:
        session: with a LoRA model and its `Adapter`.
        folder: where it goes.
        writing: this rank's.

    Returns:
        The files that will be there.

    Raises:
        RuntimeError: on every rank; the ranks together do not hold every tensor that was planned, in its shape.
    """
    adapter = session.adapter
    assert adapter is not None
    whole = _collect(session, adapter.plan)
    if ranks.is_first():
        writing.add(partial(write_weights, folder / WEIGHTS_FILE, whole))
        config = adapter.plan.config(adapter.base_model_dir)
        writing.add(partial(write_small_files, folder, config, adapter.base_model_dir, adapter.base_fingerprint))
        for name, text in adapter.changed_files.items():
            writing.add(partial(write_text, folder / name, text))
    return [folder / WEIGHTS_FILE, folder / CONFIG_FILE]


def _collect(session: Session, plan: LoraPlan) -> dict[str, torch.Tensor]:
    """Bring every trained tensor to the first rank, in fp32 on the CPU; elsewhere the result is empty."""
    held = _whole_trained(session)
    shapes_of_ranks: list[dict[str, tuple[int, ...]]] = [{} for _ in range(ranks.world_size())]
    dist.all_gather_object(shapes_of_ranks, {name: tuple(value.shape) for name, value in held.items()})
    owners: dict[str, int] = {}
    for rank, shapes in enumerate(shapes_of_ranks):
        for name in shapes:
            owners.setdefault(name, rank)
    _refuse_difference({name: shapes_of_ranks[rank][name] for name, rank in owners.items()}, plan.shapes)
    whole: dict[str, torch.Tensor] = {}
    for name, shape in plan.shapes.items():
        value = held[name] if owners[name] == ranks.rank() else torch.empty(shape)
        if owners[name] != 0:
            value = _send_to_first(value, owners[name])
        if ranks.is_first():
            whole[name] = value
    return whole


def _refuse_difference(found: Mapping[str, tuple[int, ...]], planned: Mapping[str, tuple[int, ...]]) -> None:
    if found != planned:
        wrong = sorted(name for name in {*found, *planned} if found.get(name) != planned.get(name))
        raise RuntimeError(
            f"the ranks hold {len(found)} of the adapter's {len(planned)} tensors; "
            f"missing, unknown or of another shape: {', '.join(wrong[:4])}"
        )


def _send_to_first(value: torch.Tensor, owner: int) -> torch.Tensor:
    if ranks.rank() not in (0, owner):
        return value
    travelling = value.to(ranks.device())
    if ranks.rank() == owner:
        dist.send(travelling, 0)
    else:
        dist.recv(travelling, owner)
    return travelling.cpu()


def _whole_trained(session: Session) -> dict[str, torch.Tensor]:
    """Return what this rank trains, in fp32 on the CPU, tensor-parallel parts put together; a collective call."""
    whole: dict[str, torch.Tensor] = {}
    with session.saved_weights.in_place():
        for prefix, module in boosted_module(session.model).named_modules():
            own = dict(module.named_parameters(prefix, recurse=False))
            trained = {name for name, parameter in own.items() if parameter.requires_grad}
            if not trained:
                continue
            saved: dict[str, torch.Tensor] = {}
            module._save_to_state_dict(saved, f"{prefix}.", False)  # a module knows how its weights are divided
            for name in trained:
                whole[adapter_key(name)] = saved[name].detach().to("cpu", torch.float32, copy=True).contiguous()
    assert session.adapter is not None
    known = session.adapter.plan.shapes  # has one name of a tied weight, and the ends of a pipeline both
    return {name: value for name, value in whole.items() if name in known}
