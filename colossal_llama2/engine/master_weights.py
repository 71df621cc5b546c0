"""Checkpoints from the fp32 master weights, so that resuming in half precision is exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


def boosted_module(model: Any) -> torch.nn.Module:
    """Return the model inside what ``booster.boost`` returned."""
    module: torch.nn.Module = model.unwrap()
    return module


class MasterWeights:
    """The fp32 values behind half-precision working weights.

    ColossalAI saves the half-precision working weights and rebuilds the masters from them, which loses the masters' low
    bits (measured: losses differ by 7e-4 after a resume). This can go when ColossalAI saves its masters.

    Args:
        model: what ``booster.boost`` returned for the model.
        optimizer: what it returned for the optimizer; one without master weights makes all of this a no-op.
    """

    def __init__(self, model: Any, optimizer: Any) -> None:
        self._model = model
        self._optimizer = optimizer

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, every trained working weight holds its fp32 master; on leaving it is cast back.

        For saving and loading by ColossalAI itself. Costs one fp32 copy of the trained weights for as long as it is
        open (none with Gemini). Every rank must enter and leave together.
        """
        if hasattr(self._model, "gemini_manager"):
            with _gemini_speaks_fp32(self._model):
                yield
            return
        half_precision: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        for parameter in self._model.unwrap().parameters():
            if self._master_of(parameter) is not None:
                half_precision.append((parameter, parameter.data))
                parameter.data = self.whole(parameter).clone()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, storage in half_precision:
                    # back into the old storage: ZeRO all-gathers into it after every step
                    parameter.data = storage.copy_(parameter.data)

    def whole(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return a weight's fp32 master in the weight's shape, or the weight where it is all there is.

        It may be the master itself: to be read, not written. A collective call where masters are sharded.
        """
        master = self._master_of(parameter)
        return parameter.detach() if master is None else self.unsharded(master.detach(), parameter)

    def unsharded(self, shard: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Gather a ZeRO shard (a flat slice of the padded flat parameter) into the parameter's shape."""
        shard = shard.to(parameter.device)
        if shard.shape == parameter.shape:
            return shard
        group = self._optimizer.param_to_pg[parameter]
        flat = torch.empty(shard.numel() * dist.get_world_size(group), dtype=shard.dtype, device=shard.device)
        dist.all_gather_into_tensor(flat, shard.contiguous(), group=group)
        return flat[: parameter.numel()].view(parameter.shape)

    def held(self, parameter: torch.nn.Parameter) -> tuple[torch.Tensor, int, int]:
        """Return the part of a weight's fp32 master that this rank holds, flat; of the weight where it is all there is.

        Not for Gemini, whose weights are in chunks.

        Returns:
            The numbers, among them padding behind the weight's own; the number of this part, from 0; how many parts of
            that length there are, 1 where every rank of the group holds all of it.
        """
        master = self._master_of(parameter)
        if master is None or master.shape == parameter.shape:
            return (parameter if master is None else master).detach().flatten(), 0, 1
        group = self._optimizer.param_to_pg[parameter]
        return master.detach(), dist.get_rank(group), dist.get_world_size(group)

    @torch.no_grad()
    def put(self, parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
        """Set a weight and its master to a value in the weight's shape; not for Gemini, whose weights are in chunks."""
        parameter.data.copy_(value)
        master = self._any_master_of(parameter)
        if master is None:
            return
        if master.shape == parameter.shape:
            master.copy_(value)
            return
        group = self._optimizer.param_to_pg[parameter]
        begin = dist.get_rank(group) * master.numel()
        mine = value.reshape(-1)[begin : begin + master.numel()]
        master[: mine.numel()].copy_(mine)  # what is left is padding

    @torch.no_grad()
    def start_from(self, originals: Mapping[str, torch.Tensor]) -> None:
        """Set the masters to whole weights as they were before the plugin cast them, by every name they have."""
        if hasattr(self._model, "gemini_manager"):
            with self.in_place():
                self._model.load_state_dict(dict(originals), strict=False)
            return
        for prefix, module in boosted_module(self._model).named_modules():
            own = {name: p for name, p in module.named_parameters(prefix, recurse=False) if name in originals}
            storages = {name: parameter.data for name, parameter in own.items()}
            for name, parameter in own.items():
                parameter.data = torch.empty_like(parameter, dtype=originals[name].dtype)
            if own:  # a module knows how it divides its own weights over ranks
                dot = prefix + "." if prefix else ""
                module._load_from_state_dict({name: originals[name] for name in own}, dot, {}, True, [], [], [])
            for name, parameter in own.items():
                value, parameter.data = parameter.data, storages[name]
                self.put(parameter, value)

    def _master_of(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        """Return this rank's fp32 master, or None where the parameter is fp32 itself or has none."""
        return None if parameter.dtype == torch.float32 else self._any_master_of(parameter)

    def _any_master_of(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        find_masters = getattr(self._optimizer, "get_working_to_master_map", None)
        master = ((find_masters and find_masters()) or {}).get(id(parameter))
        return None if master is None or master is parameter else master.data


@contextmanager
def _gemini_speaks_fp32(model: Any) -> Iterator[None]:
    """Gemini saves and loads its fp32 chunks, and casts them to `mixed_precision` on the way: make that no cast."""
    manager = model.chunk_manager
    kept = model.mixed_precision, manager.reuse_fp16_chunk
    # read by save and load only to choose between fp32 chunks (True) and half-precision ones
    model.mixed_precision, manager.reuse_fp16_chunk = torch.float32, True
    try:
        yield
    finally:
        model.mixed_precision, manager.reuse_fp16_chunk = kept
