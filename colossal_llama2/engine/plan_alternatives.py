"""What else would fit: plugin, checkpointing and degrees tried one by one, each with the most rows it has room for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from colossal_llama2.engine.memory_plan import MemoryPlan, predict
from colossal_llama2.engine.plan_request import Layout, PlanRequest
from colossal_llama2.engine.plugins import PluginName
from colossal_llama2.errors import InputError
from colossal_llama2.model.model_shape import ModelShape

CRITERION = (
    "best first: nothing moved to host memory, then nothing recomputed, then tokens enough for a card in a "
    "micro-batch, then the least communication (ddp, zero2, gemini, 3d)"
)
ENOUGH_TOKENS = 4096  # matmuls of this many rows keep a card busy; more of them gain little
_LARGEST_MICRO_BATCH = 64
_DATA_PARALLEL: tuple[PluginName, ...] = ("ddp", "zero2", "gemini", "zero2_cpu", "gemini_auto")
_LEAST_COMMUNICATION: tuple[PluginName, ...] = ("ddp", "zero2", "gemini", "3d", "zero2_cpu", "gemini_auto")
_OFFLOADING = ("zero2_cpu", "gemini_auto")


@dataclass(frozen=True)
class Room:
    """What the machines have.

    Attributes:
        device_bytes: memory of one device.
        host_bytes: memory of one machine, None where it is not known and not to be a reason against anything.
        ranks_per_node: ranks that share a machine.
    """

    device_bytes: int
    host_bytes: int | None
    ranks_per_node: int

    def holds(self, plan: MemoryPlan) -> bool:
        """Tell whether a plan fits devices and, where that is known, machines."""
        return plan.fits(self.device_bytes) and (self.host_bytes is None or self.host_used(plan) <= self.host_bytes)

    def host_used(self, plan: MemoryPlan) -> int:
        """Host memory of a machine, in bytes."""
        return plan.host.peak * self.ranks_per_node


def alternatives(shape: ModelShape, request: PlanRequest, room: Room) -> list[MemoryPlan]:
    """Return what fits, best first by `CRITERION`; of each kind the one with the largest micro-batch.

    Precision, number of ranks, length, accumulation and what is trained stay as they were asked for.
    """
    found: list[MemoryPlan] = []
    for layout in _layouts(request.layout, request.training.accumulation_steps, room.ranks_per_node):
        for recompute in (False, True):
            training = replace(request.training, use_grad_checkpoint=recompute)
            plan = _largest_that_fits(shape, PlanRequest(layout, training), room)
            if plan is not None:
                found.append(plan)
    return sorted(found, key=_rank)


def _layouts(asked: Layout, accumulation: int, ranks_per_node: int) -> Iterator[Layout]:
    for plugin in _DATA_PARALLEL:
        yield Layout(plugin=plugin, nproc=asked.nproc)
    for tp in (1, 2, 4, 8):
        for pp in (1, 2, 4, 8):
            # Tensor parallelism talks in every layer: it stays inside a machine. A pipeline with fewer micro-batches
            # than stages stands still most of the time.
            if tp * pp > 1 and tp <= ranks_per_node and pp <= accumulation and asked.nproc % (tp * pp) == 0:
                yield Layout(plugin="3d", nproc=asked.nproc, tp=tp, pp=pp, zero=min(asked.zero, 1))


def _largest_that_fits(shape: ModelShape, request: PlanRequest, room: Room) -> MemoryPlan | None:
    """Double the rows until they do not fit; None where a single one does not, or the plugin cannot do it."""
    best, rows = None, 1
    if request.training.precision == "fp32" and request.layout.plugin == "3d":
        request = replace(request, layout=replace(request.layout, zero=0))
    while rows <= _LARGEST_MICRO_BATCH:
        try:
            plan = predict(shape, replace(request, training=replace(request.training, micro_batch_size=rows)))
        except InputError:  # this plugin cannot do what was asked for: no alternative
            return None
        if not room.holds(plan):
            return best
        best, rows = plan, rows * 2
    return best


def _rank(plan: MemoryPlan) -> tuple[object, ...]:
    layout, training = plan.request.layout, plan.request.training
    tokens = training.micro_batch_size * training.max_length
    return (
        layout.plugin in _OFFLOADING,
        training.use_grad_checkpoint,
        tokens < ENOUGH_TOKENS,
        _LEAST_COMMUNICATION.index(layout.plugin),
        layout.tp * layout.pp,
        layout.pp,
        -tokens,
    )
