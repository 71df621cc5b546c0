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
    "best first: nothing moved to host memory, then as few layers recomputed as can be, then tokens enough for a card "
    "in a micro-batch, then the least communication (ddp, zero2, gemini, 3d)"
)
ENOUGH_TOKENS = 4096  # matmuls of this many rows keep a card busy; more of them gain little
_LARGEST_MICRO_BATCH = 64
_DATA_PARALLEL: tuple[PluginName, ...] = ("ddp", "zero2", "gemini", "zero2_cpu", "gemini_auto")
_LEAST_COMMUNICATION: tuple[PluginName, ...] = ("ddp", "zero2", "gemini", "3d", "zero2_cpu", "gemini_auto")
_OFFLOADING = ("zero2_cpu", "gemini_auto")
_FRACTIONS = (0.25, 0.5, 0.75, 1.0)  # of masters and moments in host memory (zero2_cpu); the least that fits is shown


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
        asked = PlanRequest(layout, replace(request.training, use_grad_checkpoint=False, checkpoint_layers=0))
        everything = replace(asked, training=replace(asked.training, use_grad_checkpoint=True))
        plans = [_least_offloaded(shape, asked, room), _least_offloaded(shape, everything, room)]
        if plans[1] is not None and (plans[0] is None or not _is_enough(plans[0])):
            plans.append(_some_layers(shape, plans[1].request, room))
        found += [plan for plan in plans if plan is not None]
    return sorted(found, key=_rank)


def _least_offloaded(shape: ModelShape, request: PlanRequest, room: Room) -> MemoryPlan | None:
    """Keep as little in host memory as leaves room for a micro-batch that is enough, or else for one at all."""
    if request.layout.plugin != "zero2_cpu":
        return _largest_that_fits(shape, request, room)
    layouts = [replace(request.layout, offload_fraction=fraction) for fraction in _FRACTIONS]
    plans = [_largest_that_fits(shape, replace(request, layout=layout), room) for layout in layouts]
    fitting = [plan for plan in plans if plan is not None]
    return next((plan for plan in fitting if _is_enough(plan)), next(iter(fitting), None))


def _some_layers(shape: ModelShape, request: PlanRequest, room: Room) -> MemoryPlan | None:
    """Recompute the fewest layers that leave room for a micro-batch that is just enough; None where that is all."""
    rows = -(-ENOUGH_TOKENS // request.training.max_length)
    training = replace(request.training, use_grad_checkpoint=False, micro_batch_size=rows)
    found, least, most = None, 1, shape.layers - 1
    while least <= most:
        layers = (least + most) // 2
        plan = predict(shape, replace(request, training=replace(training, checkpoint_layers=layers)))
        if room.holds(plan):
            found, most = plan, layers - 1
        else:
            least = layers + 1
    return found


def _is_enough(plan: MemoryPlan) -> bool:
    training = plan.request.training
    return training.micro_batch_size * training.max_length >= ENOUGH_TOKENS


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
        training.checkpoint_layers,
        not _is_enough(plan),
        _LEAST_COMMUNICATION.index(layout.plugin),
        layout.tp * layout.pp,
        layout.pp,
        -tokens,
    )
