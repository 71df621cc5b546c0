"""The moments of a training step that can be the fullest, and what is in device memory at each, by kind."""

from __future__ import annotations

from dataclasses import dataclass

from colossal_llama2.engine.activation_memory import (
    FULL,
    HALF,
    MicroBatch,
    checkpoint_bytes,
    ends_bytes,
    layer_bytes,
    working_bytes,
)
from colossal_llama2.engine.head_memory import defers, loss_bytes
from colossal_llama2.engine.plan_request import (
    Held,
    PlanRequest,
    held_parameters,
    layers_of_stages,
    micro_batch_of,
    padded_vocab,
    recomputed_layers,
)
from colossal_llama2.engine.state_memory import StateMemory, state_memory
from colossal_llama2.model.model_shape import ModelShape

_AFTER_BACKWARD = ("the update", "the new weights", "a checkpoint")
KINDS = ("weights", "optimizer", "gradients", "activations", "logits", "working", "communication")


@dataclass(frozen=True)
class Moment:
    """What is in device memory at one moment of a step, in bytes by kind.

    Attributes:
        name: of the moment.
        weights: what forward and backward compute with.
        optimizer: masters and moments.
        gradients: those complete.
        activations: what forward kept for backward.
        logits: scores of the vocabulary, their copies and gradients.
        working: a recomputed layer, gradients inside a layer, copies for the update.
        communication: gathered weights, gradients on their way to where they are kept, buckets.
    """

    name: str
    weights: int
    optimizer: int
    gradients: int = 0
    activations: int = 0
    logits: int = 0
    working: int = 0
    communication: int = 0

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(int(getattr(self, kind)) for kind in KINDS)


def moments_of(shape: ModelShape, request: PlanRequest, stage: int = 0) -> tuple[Moment, ...]:
    """List them for one rank of a pipeline stage, in the order in which they come."""
    batch = micro_batch_of(shape, request)
    view = _Stage(
        shape=shape,
        request=request,
        batch=batch,
        state=state_memory(shape, request, stage),
        held=tuple(held_parameters(shape, request, stage)),
        num_layers=len(layers_of_stages(shape.layers, request.layout.pp)[stage]),
        num_recomputed=len(_recomputed(shape, request)[stage]),
        is_last=stage == request.layout.pp - 1,
        in_flight=min(request.layout.pp - stage, request.training.accumulation_steps),
    )
    # Going backward, the fullest layers are the last, the last recomputed (when all others have gone), and the first.
    layers = {0, view.num_layers - view.num_recomputed, view.num_layers - 1} & set(range(view.num_layers))
    found = [view.loss(), view.head_gradient(), *map(view.layer, sorted(layers))]
    found += [view.embedding_gradient(), view.update(), view.gather(), view.save()]
    return tuple(found)


def activation_peak(shape: ModelShape, request: PlanRequest) -> int:
    """Return the most bytes of activations at a time, gradients inside a layer and recomputed ones among them."""
    stages = [moments_of(shape, request, stage) for stage in range(request.layout.pp)]
    return max(m.activations + m.working for moments in stages for m in moments if m.name not in _AFTER_BACKWARD)


def _recomputed(shape: ModelShape, request: PlanRequest) -> list[range]:
    """Return the layers of each pipeline stage that are recomputed."""
    training = request.training
    wanted = shape.layers if training.use_grad_checkpoint else training.checkpoint_layers
    return recomputed_layers(wanted, shape.layers, request.layout.pp)


@dataclass(frozen=True)
class _Stage:
    """One pipeline stage's rank; without a pipeline there is one stage, which is the last."""

    shape: ModelShape
    request: PlanRequest
    batch: MicroBatch
    state: StateMemory
    held: tuple[Held, ...]
    num_layers: int
    num_recomputed: int
    is_last: bool
    in_flight: int

    def loss(self) -> Moment:
        """All activations are there, and the logits in several copies, or chunk by chunk."""
        return self._moment(
            "the loss",
            gradients=self.state.gradients_before,
            activations=self.waiting + self.kept_by(self.num_layers) + self.ends + self.casts(self.num_layers),
            logits=loss_bytes(self.shape, self.batch, self.vocab, self.request),
            communication=self.state.gathered,
        )

    def head_gradient(self) -> Moment:
        """The logits' gradient meets the head's; or, when it has gone, the head's is on its way to where it is kept."""
        whole = not defers(self.shape, self.request)
        logits = self.batch.element * self.batch.tokens * self.vocab * whole
        head = max((p.numel for p in self.held if p.trained and p.role == "head"), default=0)
        own = self.batch.element * head
        kept = self.state.single_bytes * head or (self.state.largest_gradient if head else 0)
        return self._moment(
            "the head's gradient",
            gradients=max(self.state.gradients_before, self.state.gradients * head // max(self.trained, 1)),
            activations=self.waiting + self.kept_by(self.num_layers) + self.ends + self.casts(self.num_layers),
            logits=logits if logits + own > kept else 0,
            communication=own if logits + own > kept else kept,
        )

    def layer(self, done: int) -> Moment:
        """A layer goes backward after `done` others: gradients have come, activations have gone."""
        left = self.num_layers - done
        whole = layer_bytes(self.shape, self.batch) if left <= self.num_recomputed else 0
        name = "the last layer's backward" if done == 0 else "the first layer's backward"
        arrived = sum(p.numel for p in self.held if p.trained and p.role in ("head", "other"))
        arrived += sum(p.numel for p in self.held if p.trained and p.role == "layer") * done // max(self.num_layers, 1)
        pending = min(self.state.pending, arrived)
        return self._moment(
            name if done in (0, self.num_layers - 1) else "a recomputed layer",
            gradients=max(
                self.state.gradients_before, self.state.gradients * (arrived - pending) // max(self.trained, 1)
            ),
            activations=self.waiting + self.kept_by(left) + self.casts(left),
            working=whole + working_bytes(self.shape, self.batch),
            communication=self.state.open_chunks + self.state.pending_bytes * pending + self.tied_gradient,
        )

    def embedding_gradient(self) -> Moment:
        """The first parameter's gradient comes last."""
        return self._moment(
            "the embedding's gradient",
            gradients=self.state.gradients,
            activations=self.waiting,
            communication=self.state.largest_gradient + self.tied_gradient,
        )

    def update(self) -> Moment:
        """The optimizer steps."""
        return self._moment("the update", gradients=self.state.gradients, working=self.state.update)

    def gather(self) -> Moment:
        """Every rank's new weights go to all of them."""
        return self._moment("the new weights", gradients=self.state.gradients, communication=self.state.gathering)

    def save(self) -> Moment:
        """A checkpoint is written, one tensor whole and in fp32 at a time."""
        return self._moment("a checkpoint", working=self.state.saving)

    def _moment(self, name: str, communication: int = 0, **kinds: int) -> Moment:
        return Moment(
            name,
            weights=self.state.weights,
            optimizer=self.state.optimizer,
            communication=communication + self.state.buffers,
            **kinds,
        )

    def kept_by(self, layers: int) -> int:
        """Bytes that the first so many layers keep from forward to backward."""
        recomputed = min(self.num_recomputed, layers)
        plain = (layers - recomputed) * layer_bytes(self.shape, self.batch)
        return recomputed * checkpoint_bytes(self.shape, self.batch) + plain

    @property
    def ends(self) -> int:
        """Bytes kept beside the layers."""
        return ends_bytes(self.shape, self.batch) if self.is_last else self.batch.tokens * 3 * 8

    @property
    def waiting(self) -> int:
        """Bytes of micro-batches whose backward pass is still to come, their hidden states at the stage's doors too."""
        if self.request.layout.pp == 1:
            return 0
        doors = 2 * self.in_flight * checkpoint_bytes(self.shape, self.batch)
        return (self.in_flight - 1) * (self.kept_by(self.num_layers) + self.ends) + doors

    def casts(self, layers: int) -> int:
        """Bytes of autocast's half-precision weights while the first so many layers wait for their backward pass.

        Kept by every product whose layer is not recomputed, and by the head's.
        """
        if not self.batch.autocast:
            return 0
        tied = sum(p.numel for p in self.held if p.role == "embedding") if self.shape.tied else 0
        head = sum(p.numel for p in self.held if p.is_matrix and p.role == "head")
        inside = sum(p.numel for p in self.held if p.is_matrix and p.role == "layer")
        plain = layers - min(self.num_recomputed, layers)
        return HALF * ((tied + head) * layers + inside * plain) // max(self.num_layers, 1)

    @property
    def vocab(self) -> int:
        """Rows of the head that this rank computes."""
        return padded_vocab(self.shape, self.request.layout.tp) // self.request.layout.tp if self.is_last else 0

    @property
    def trained(self) -> int:
        """Elements that learn."""
        return sum(p.numel for p in self.held if p.trained)

    @property
    def tied_gradient(self) -> int:
        """Bytes of the head's part of a tied weight's gradient: it waits for the embedding's until the very end."""
        if not (self.shape.tied and self.is_last):
            return 0
        element = FULL if self.batch.autocast else self.batch.element
        return element * sum(p.numel for p in self.held if p.role == "embedding" and p.trained)
