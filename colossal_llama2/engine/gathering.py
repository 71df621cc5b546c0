"""Whole tensors out of a boosted model, one at a time: fp32 weights and Adam's moments, whatever the plugin shards.

Every rank asks for the same tensors in the same order; each holds one of them at a time on its device, and keeps it or
drops it. So a save needs room for the largest tensor on the device, not for a copy of the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from colossal_llama2.engine import ranks
from colossal_llama2.engine.session import Session

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class WholeWeight:
    """A weight or a persistent buffer under the name transformers knows it by.

    Attributes:
        name: of the parameter; a tied weight has one.
        changes: False for a frozen weight.
        numel: number of elements.
        dtype: of what `gather` returns: fp32 where it is trained.
        gather: returns the tensor; a collective call.
    """

    name: str
    changes: bool
    numel: int
    dtype: torch.dtype
    gather: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class WholeMoments:
    """Adam's state of one parameter.

    Attributes:
        index: number of the parameter over all groups, as torch's optimizers count in their state dicts.
        numel: number of elements of the parameter.
        step: updates so far, as the float tensor that torch's Adam keeps.
        gather: returns the two moments in the parameter's shape; a collective call.
    """

    index: int
    numel: int
    step: torch.Tensor
    gather: Callable[[], dict[str, torch.Tensor]]


def whole_weights(session: Session) -> list[WholeWeight]:
    """List what ``modeling/`` holds, in the model's order: parameters, then persistent buffers."""
    module = session.model.unwrap()
    gather = _gemini_weights(session.model) if is_gemini(session) else session.saved_weights.whole
    weights = []
    for name, parameter in module.named_parameters():
        # A Gemini parameter has no storage of its own while its chunk is sharded, but keeps its shape.
        changes = parameter.requires_grad
        dtype = torch.float32 if changes else parameter.dtype
        weights.append(WholeWeight(name, changes, parameter.numel(), dtype, partial(gather, parameter)))
    for name, buffer in persistent_buffers(module).items():
        weights.append(WholeWeight(name, True, buffer.numel(), buffer.dtype, partial(torch.Tensor.detach, buffer)))
    return weights


def persistent_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that belong in a checkpoint, by name."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, owner in module.named_modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None and name not in owner._non_persistent_buffers_set
    }


def whole_moments(session: Session) -> list[WholeMoments]:
    """List what ``optimizer/`` holds, in the order of the parameter groups; zero moments where there was no update.

    A collective call.
    """
    if is_gemini(session):
        return _gemini_moments(session.optimizer)
    inner = session.optimizer.unwrap()
    sharded = getattr(session.optimizer, "get_master_to_working_map", None)
    working = sharded() if sharded else {}
    moments = []
    parameters = itertools.chain.from_iterable(group["params"] for group in inner.param_groups)
    for index, parameter in enumerate(parameters):
        like = working.get(id(parameter), parameter)
        moments.append(
            WholeMoments(
                index,
                like.numel(),
                torch.tensor(float(inner.state.get(parameter, {}).get("step", 0))),
                partial(_replica_moments, session, parameter, like),
            )
        )
    return moments


def parameter_groups(session: Session) -> list[dict[str, Any]]:
    """Return the optimizer's groups as torch's state dicts hold them: numbers, and parameters by number."""
    groups, first = [], 0
    backup = getattr(session.optimizer, "param_groups_backup", None)  # Gemini's own groups lack other ranks' shards
    for index, group in enumerate(session.optimizer.unwrap().param_groups):
        count = len((backup[index] if backup is not None else group)["params"])
        numbers = {name: value for name, value in group.items() if name != "params"}
        groups.append({**numbers, "params": list(range(first, first + count))})
        first += count
    return groups


def is_gemini(session: Session) -> bool:
    """Tell whether parameters live in Gemini's chunks."""
    return hasattr(session.model, "gemini_manager")


def _replica_moments(session: Session, parameter: torch.Tensor, like: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    state = session.optimizer.unwrap().state.get(parameter)
    if not state:
        state = dict.fromkeys(MOMENTS, torch.zeros_like(parameter, dtype=torch.float32))
    return {name: session.saved_weights.unsharded(state[name], like) for name in MOMENTS}


def _gemini_weights(model: Any) -> Callable[[torch.nn.Parameter], torch.Tensor]:
    """Return a function that cuts a parameter out of its gathered fp32 chunk, and keeps the last chunk gathered."""
    from colossalai.zero.gemini.utils import get_temp_total_chunk_on_cuda

    masters = dict(zip(model.fp16_params, model.fp32_params, strict=True))
    gathered: dict[str, Any] = {"chunk": None, "values": None}

    def whole(parameter: torch.nn.Parameter) -> torch.Tensor:
        if parameter not in masters:  # frozen: Gemini leaves it alone
            return parameter.detach()
        master = masters[parameter]
        chunk = model.chunk_manager.get_chunk(master)
        if gathered["chunk"] is not chunk:
            gathered["values"] = None  # before the next is made: one chunk at a time
            gathered["values"], gathered["chunk"] = get_temp_total_chunk_on_cuda(chunk, torch.float32), chunk
        place = chunk.tensors_info[master]
        values: torch.Tensor = gathered["values"][place.offset : place.end]
        return values.view(master.shape)

    return whole


def _gemini_moments(optimizer: Any) -> list[WholeMoments]:
    parameters = list(optimizer.id_to_real_params.items())
    # a rank knows the steps of the parameters it holds a piece of; all ranks together hold all of them
    known = [_gemini_state(optimizer, number).get("step", 0) for number, _ in parameters]
    steps = torch.tensor([float(step) for step in known], device=ranks.device())
    dist.all_reduce(steps, op=dist.ReduceOp.MAX)
    return [
        WholeMoments(number, parameter.numel(), step.clone(), partial(_gemini_pieces, optimizer, number, parameter))
        for (number, parameter), step in zip(parameters, steps.cpu(), strict=True)
    ]


def _gemini_state(optimizer: Any, number: int) -> dict[str, Any]:
    """Return this rank's piece of a parameter's state; empty where it has none."""
    piece = optimizer.id_to_fake_params.get(number)
    state: dict[str, Any] = {} if piece is None else optimizer.optim.state.get(piece, {})
    return state


def _gemini_pieces(optimizer: Any, number: int, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """Put the ranks' pieces of one parameter's moments together: zeros elsewhere, and a sum."""
    state = _gemini_state(optimizer, number)
    chunk = optimizer.chunk_manager.get_chunk(parameter)
    _, begin, length = optimizer.get_offsets(number)
    whole = {}
    for name in MOMENTS:
        values = torch.zeros(parameter.numel(), dtype=torch.float32, device=ranks.device())
        if name in state:
            values[begin : begin + length] = state[name].to(values.device)
        if not chunk.keep_gathered:
            dist.all_reduce(values, group=chunk.torch_pg)
        whole[name] = values.view(parameter.shape)
    return whole
