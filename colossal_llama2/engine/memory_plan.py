"""How much memory a run will take on one rank, at its fullest moments, before anything is started.

A step is a row of moments (the loss, the backward pass layer by layer, the update), and what is there at each is added
up by kind. The peak is the largest of the sums: not the sum of the peaks, because activations leave as gradients come.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from colossal_llama2.engine.activation_memory import FULL
from colossal_llama2.engine.moments import Moment, moments_of
from colossal_llama2.engine.plan_checks import check_request
from colossal_llama2.engine.plan_request import PlanRequest, held_parameters
from colossal_llama2.engine.state_memory import StateMemory, rounds_weights, state_memory
from colossal_llama2.model.model_shape import ModelShape

GIB = 1 << 30
# Outside of what torch allocates. Not derived: what CUDA and NCCL commonly take on current cards.
CUDA_CONTEXT = GIB // 2
NCCL_BUFFERS = GIB // 2
FRAGMENTATION = 0.04  # of what is allocated: blocks the allocator holds and cannot use
PROCESS_HOST = 3 * GIB  # python, torch, CUDA's and ColossalAI's libraries, of one rank


@dataclass(frozen=True)
class HostMemory:
    """Bytes of host memory of one rank.

    Attributes:
        training: weights, masters, moments and gradients that live there; pinned copies among them.
        update: copies during the optimizer's step.
        loading: the model on its way from its folder to the device.
        process: allowance for the process itself.
    """

    training: int
    update: int
    loading: int
    process: int = PROCESS_HOST

    @property
    def peak(self) -> int:
        """Bytes at its fullest; what loading needs is given back before training."""
        return self.process + max(self.training + self.update, self.loading)


@dataclass(frozen=True)
class MemoryPlan:
    """A run's memory.

    Attributes:
        request: what was asked for.
        parameters, trained: of the whole model, adapters among them.
        moments: of the fullest pipeline stage's rank.
        stage: number of that stage.
        host: of one rank.
        context: allowance for CUDA and NCCL, which torch does not count.
        fragmentation: allowance for the allocator.
        elastic: weights that gemini_auto keeps on the device where there is room for them.
    """

    request: PlanRequest
    parameters: int
    trained: int
    moments: tuple[Moment, ...]
    stage: int
    host: HostMemory
    context: int
    fragmentation: int
    elastic: int = 0

    @property
    def fullest(self) -> Moment:
        """The moment with the most in memory."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def allocated(self) -> int:
        """Predicted peak of ``torch.cuda.max_memory_allocated``, in bytes."""
        return self.fullest.total

    @property
    def needed(self) -> int:
        """Bytes of a device's memory: what is allocated, and the allowances."""
        return self.allocated + self.context + self.fragmentation

    def fits(self, device_bytes: float) -> bool:
        """Tell whether a device has room."""
        return self.needed <= device_bytes

    def as_json(self) -> dict[str, object]:
        """Everything as plain numbers, in bytes."""
        return {**asdict(self), "allocated": self.allocated, "needed": self.needed, "host_peak": self.host.peak}


def predict(shape: ModelShape, request: PlanRequest) -> MemoryPlan:
    """Predict the memory of the fullest rank.

    Args:
        shape: the model.
        request: plugin, ranks, precision and batch.

    Raises:
        InputError: the combination cannot run.
    """
    check_request(shape, request)
    stages = [(moments_of(shape, request, stage), stage) for stage in range(request.layout.pp)]
    moments, stage = max(stages, key=lambda found: max(moment.total for moment in found[0]))
    state = state_memory(shape, request, stage)
    everything = held_parameters(shape, PlanRequest(training=request.training), 0)
    allocated = max(moment.total for moment in moments)
    return MemoryPlan(
        request=request,
        parameters=sum(p.numel for p in everything),
        trained=sum(p.numel for p in everything if p.trained),
        moments=moments,
        stage=stage,
        host=_host(shape, request, state),
        context=CUDA_CONTEXT + (NCCL_BUFFERS if request.layout.nproc > 1 else 0),
        fragmentation=int(FRAGMENTATION * allocated),
        elastic=state.weights_host if request.layout.plugin == "gemini_auto" else 0,
    )


def describe_predicted(plan: MemoryPlan) -> str:
    """Say what is predicted, for a log."""
    return f"{plan.allocated / GIB:.2f} GiB of every device predicted, most of it at {plan.fullest.name}"


def describe_actual(plan: MemoryPlan, actual: int) -> str:
    """Set the predicted peak beside the one that was measured, for a log.

    Args:
        plan: the prediction.
        actual: ``torch.cuda.max_memory_allocated`` of the fullest rank, in bytes.
    """
    deviation = (plan.allocated - actual) / actual
    return (
        f"memory: {plan.allocated / GIB:.2f} GiB predicted (at {plan.fullest.name}), "
        f"{actual / GIB:.2f} GiB actual peak ({deviation:+.0%})"
    )


def _host(shape: ModelShape, request: PlanRequest, state: StateMemory) -> HostMemory:
    """Every rank reads the whole model into host memory; what changes its dtype there stands twice for a while."""
    element = FULL if request.layout.plugin == "ddp" else request.training.element
    stored = shape.stored_bytes or shape.numel * getattr(torch, shape.stored_dtype).itemsize
    rounded = rounds_weights(shape.stored_dtype, request.training.precision) and request.layout.plugin != "ddp"
    loading = max(stored, element * shape.numel) + (min(stored, element * shape.numel) if rounded else 0)
    return HostMemory(
        training=state.weights_host + state.optimizer_host + state.gradients_host + state.rounding_host,
        update=state.update_host,
        loading=max(loading, state.boosting_host + (stored if rounded else 0)),
    )
