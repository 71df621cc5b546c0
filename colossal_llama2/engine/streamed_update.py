"""ZeRO's update in pieces: fp32 gradients of a few parameters at a time, and masters that share host and device.

ColossalAI's ``LowLevelZeroOptimizer.step`` copies every gradient of a rank to fp32 before it updates the first
parameter: 4 bytes a parameter on top of everything else, 26 GiB for a model of 7 billion on one rank, at the very
moment that is the fullest of a step. The norm of all gradients is known before, so that each can be scaled, used and
let go of on its own, and the numbers that come out are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch

from colossal_llama2.engine import ranks
from colossal_llama2.engine.device_norm import norm_of_norms

# Elements: 256 MiB in fp32. Smaller pieces save little beside the largest parameter, which is a piece of its own.
PIECE = 64 << 20


def step_in_pieces(self: Any, closure: None = None) -> None:
    """Update the masters with this rank's gradients and give all ranks the new weights.

    Takes the place of ``LowLevelZeroOptimizer.step`` (`engine/compat.py`), whose order of things it keeps: overflow,
    norm, scale and clip, update, gather.
    """
    assert closure is None, "ZeRO calls no closure"
    if not self.require_grad_sync:
        return
    if self.mixed_precision_mixin is not None and self.mixed_precision_mixin.should_skip_step():
        self.zero_grad()
        return
    learning = [_with_gradients(self, group) for group in range(self.num_param_groups)]
    self._current_grad_norm = _global_norm(self)
    # a probe: fp16's loss scale may be asked for once a step; it stays on the device, where the norm is
    factor = torch.ones((), dtype=torch.float64, device=ranks.device())
    self._unscale_and_clip_grads([factor], self._current_grad_norm)
    factor_on = cache(factor.to)
    for group in self.optim.param_groups:
        group["params"] = []
    for number, found in enumerate(learning):
        for piece in _pieces(found):
            _update(self, number, piece, factor_on)
    for number in range(self.num_param_groups):
        self.optim.param_groups[number]["params"] = self._master_param_groups_of_current_rank[number]
    _give_to_all(self, [(master, working) for found in learning for master, working, _ in found])


def host_share(sizes: Sequence[int], fraction: float) -> list[bool]:
    """Choose whose masters and moments lie in host memory: the first of all, up to a share of their elements.

    Args:
        sizes: elements of every parameter of a rank.
        fraction: of their sum that is to lie there.
    """
    total, before, chosen = sum(sizes), 0, []
    for size in sizes:
        chosen.append(before + size / 2 < fraction * total)
        before += size
    return chosen


def bring_to_device(optimizer: Any, fraction: float, device: torch.device) -> tuple[int, int]:
    """Take the masters that need not lie in host memory back to the device; to be called before the first step.

    Moments follow their master when they are made, and an update happens where they all lie.

    Args:
        optimizer: ZeRO's, made with ``cpu_offload``.
        fraction: share of the elements that stays in host memory.
        device: for the others.

    Returns:
        Elements of this rank in host memory and on the device.
    """
    masters = [master for group in optimizer._master_param_groups_of_current_rank.values() for master in group]
    stays = host_share([master.numel() for master in masters], fraction)
    for master, on_host in zip(masters, stays, strict=True):
        if not on_host:
            _move(master, device)
    kept = sum(master.numel() for master, on_host in zip(masters, stays, strict=True) if on_host)
    return kept, sum(master.numel() for master in masters) - kept


def _move(master: torch.Tensor, device: torch.device) -> None:
    """Put a master elsewhere; it stays the tensor that ColossalAI knows it by."""
    master.data = master.data.to(device)


_Learning = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # master, working weight, this rank's gradient


def _with_gradients(zero: Any, number: int) -> list[_Learning]:
    """List what of a group has a gradient; a layer that was left out of a step has none."""
    found = []
    masters, weights = zero._master_param_groups_of_current_rank[number], zero._working_param_groups[number]
    for working, master in zip(weights, masters, strict=True):
        store = zero.pid_to_grad_store[id(working)]
        shards = store.get_partitioned_gradients_by_param_id(number, id(working))
        if len(shards) > 0:
            found.append((master, working, shards[0 if zero._partition_grads else store.local_rank]))
    return found


def _global_norm(zero: Any) -> Any:
    """Return the norm of all gradients, where `device_norm` left it: on the device."""
    norms = []
    for number in range(zero.num_param_groups):
        stores = zero.pg_to_grad_store.values()
        parts = [
            zero._compute_grad_norm(dp_pg=store.torch_pg, gradients=store.get_working_grads_by_group_id(number))
            for store in stores
        ]
        norms.append(sum(parts))
    return norm_of_norms(norms)


def _pieces(found: list[_Learning]) -> Iterator[list[_Learning]]:
    piece: list[_Learning] = []
    for entry in found:
        if piece and sum(master.numel() for master, _, _ in piece) + entry[0].numel() > PIECE:
            yield piece
            piece = []
        piece.append(entry)
    if piece:
        yield piece


def _update(zero: Any, number: int, piece: list[_Learning], factor_on: Callable[[torch.device], torch.Tensor]) -> None:
    """Update one piece with its gradients times a factor, given for a device; their fp32 copies are gone afterwards.

    To a master in host memory a gradient travels in half precision: half of the bytes, the same numbers.
    """
    for master, _, gradient in piece:
        master.grad = gradient.to(master.device).to(master.dtype).mul_(factor_on(master.device))
    zero.optim.param_groups[number]["params"] = [master for master, _, _ in piece]
    zero.optim.step()
    for master, _, _ in piece:
        master.grad = None
    zero.optim.param_groups[number]["params"] = []


def _give_to_all(zero: Any, updated: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Put the new weights of every rank's part together, small ones many at a time."""
    from colossalai.zero.low_level._utils import all_gather_into_flat_tensor_nd
    from colossalai.zero.low_level.bookkeeping import TensorBucket

    buckets = {
        group: TensorBucket(zero.pg_to_bucket_store[group].reduce_bucket_size) for group in zero.pg_to_param_list
    }
    for master, working in updated:
        group = zero.param_to_pg[working]
        if zero.pid_to_bucket_store[id(working)].world_size == 1:  # nobody to send it to: one pass instead of four
            working.data.copy_(master.view_as(working))
            continue
        part, bucket = master.to(zero._dtype).to(working.device), buckets[group]
        if part.numel() > bucket.max_size:
            all_gather_into_flat_tensor_nd(zero._working_param_to_padded_working_param[working], part, group)
            continue
        if bucket.will_exceed_max_size(part.numel()):
            bucket.all_gather(group)
        bucket.add_to_bucket(part, write_back_tensor=working)
    for group, bucket in buckets.items():
        if not bucket.is_empty():
            bucket.all_gather(group)
