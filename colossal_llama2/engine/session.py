"""One model under one Booster plugin: forward, backward, step, the same five calls whatever the plugin does below."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.profiler import record_function

from colossal_llama2.engine import compat, ranks
from colossal_llama2.engine.adapters import Adapter
from colossal_llama2.engine.companions import Companion
from colossal_llama2.engine.float8 import use_float8
from colossal_llama2.engine.guard import Guard
from colossal_llama2.engine.heads import CrossEntropies, divided_head, expect_gradient, head_cross_entropies
from colossal_llama2.engine.heads import defer_head as deferred
from colossal_llama2.engine.master_weights import MasterWeights, boosted_module
from colossal_llama2.engine.named_ranges import HEAD_AND_LOSS, OPTIMIZER
from colossal_llama2.engine.parallel_loss import whole_logits
from colossal_llama2.engine.parallel_plan import check_model
from colossal_llama2.engine.plugins import PluginSettings, build_plugin
from colossal_llama2.engine.precision import DTYPES, AutocastPrecision, MasterPrecision, StepOutcome, UnreadOutcome
from colossal_llama2.engine.streamed_update import bring_to_device

BatchType = TypeVar("BatchType")


@dataclass(frozen=True)
class AdamSettings:
    """AdamW's numbers; the learning rate is the schedule's peak."""

    lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8


@dataclass(frozen=True)
class Objective(Generic[BatchType]):
    """What a stage asks of the model, in the two halves between which a pipeline's stages lie.

    Attributes:
        inputs: turns a micro-batch into the model's arguments; every pipeline stage gets them.
        loss_sum: turns the model's output into the sum of the losses of a micro-batch, a scalar; cross-entropies come
            from the function that it is given, because the vocabulary may be divided over ranks.
    """

    inputs: Callable[[BatchType], dict[str, Any]]
    loss_sum: Callable[[Any, BatchType, CrossEntropies], torch.Tensor]


class Session:
    """A model and its optimizer, boosted.

    Args:
        settings: the plugin and the precision.
        model: a transformers model on the CPU, trainable parameters marked by `requires_grad`.
        parameter_groups: trainable parameters with their ``weight_decay``, as torch optimizers take them.
        adam: the optimizer's numbers.
        lr_multiplier: maps the number of steps done to a factor on the peak learning rate.
        accumulates: a step has more than one micro-batch.
    """

    def __init__(
        self,
        settings: PluginSettings,
        model: nn.Module,
        parameter_groups: Iterable[dict[str, Any]],
        adam: AdamSettings,
        lr_multiplier: Callable[[int], float],
        accumulates: bool = True,
    ) -> None:
        compat.install()
        from colossalai.booster import Booster

        from colossal_llama2.engine.adam import FusedAdamW

        self.settings = settings
        self.companions: dict[str, Companion] = {}  # by their folder's name in a checkpoint
        self.adapter: Adapter | None = None  # set on a LoRA run, whose checkpoints then hold the adapter alone
        self.mesh = settings.mesh(ranks.rank(), ranks.world_size())
        if settings.plugin == "3d":
            check_model(settings, model)
        self.plugin = build_plugin(settings, model, accumulates)
        self.booster = Booster(plugin=self.plugin)
        optimizer = FusedAdamW(parameter_groups, lr=adam.lr, betas=(adam.beta1, adam.beta2), eps=adam.eps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_multiplier)
        if settings.plugin == "ddp" or settings.precision == "fp32":
            model.float()  # ddp's master weights; and ZeRO computes fp32 in whatever the model is stored in
        model.train()
        if settings.float8 != "no":
            use_float8(model, emulated=settings.float8 == "emulated")
        rounded = _weights_rounded_by(DTYPES[settings.precision], model) if settings.plugin != "ddp" else {}
        self._adam, self._decays = adam, [group["weight_decay"] for group in optimizer.param_groups]
        # A pipeline's ends hold a tied weight each, under both its names.
        names = list(model.named_parameters(remove_duplicate=False))
        # What is frozen is saved as it came, not as half precision rounded it; one rank writes, so one keeps it.
        self.frozen_weights = {
            name: rounded[p]
            for name, p in model.named_parameters()
            if p in rounded and not p.requires_grad and ranks.is_first()
        }
        self.parameter_names = [name for name, _ in model.named_parameters()]  # a tied weight has one name
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.model, self.optimizer, _, _, self.scheduler = self.booster.boost(model, optimizer, lr_scheduler=scheduler)
        if settings.offload_fraction < 1:
            bring_to_device(self.optimizer, settings.offload_fraction, ranks.device())
        # Plugins cast buffers with the weights; rotary frequencies in bf16 are off by radians at position 4096.
        for name, buffer in model.named_buffers():
            buffer.data = buffers[name].to(buffer.device)
        self.saved_weights = MasterWeights(self.model, self.optimizer)
        # Plugins make the masters from weights that they have cast already.
        if any(p.requires_grad for p in rounded):
            self.saved_weights.start_from({name: rounded[p] for name, p in names if p in rounded and p.requires_grad})
        self._precision = AutocastPrecision(self) if settings.plugin == "ddp" else MasterPrecision(self)
        self.cross_entropies: CrossEntropies = head_cross_entropies(self)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def autocast(self) -> AbstractContextManager[Any]:
        """Make the context in which this run computes."""
        return self._precision.autocast()

    def forward(self, **inputs: Any) -> Any:
        """Run the model in the precision asked for; what it returns is transformers' output object."""
        with self._precision.autocast():
            return self.model(**inputs)

    @property
    def forward_is_collective(self) -> bool:
        """Whether a forward pass gathers weights from all ranks, who must then make as many as one another."""
        return hasattr(self.model, "gemini_manager")

    @torch.no_grad()
    def infer(self, **inputs: Any) -> Any:
        """Run the model with the weights where they lie, in the precision of training and without gradients.

        Data-parallel ranks may call it as often as each needs to, unless `forward_is_collective`.
        """
        # DDP's own forward pass would send the buffers round, once a call
        model = boosted_module(self.model) if self.settings.plugin == "ddp" else self.model
        with self._precision.autocast():
            return model(**inputs)

    def whole_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Put logits [..., V / ranks] of a divided vocabulary together on every rank: [..., V or a little more].

        What is more stands for no token and is -inf. Undivided logits come back as they are.
        """
        head = divided_head(self)
        if head is None:
            return logits
        return whole_logits(logits, head.new_num_embeddings // self.settings.tp, self.plugin.tp_group)

    def learn(self, micro_batches: Sequence[BatchType], objective: Objective[BatchType], weight: float) -> torch.Tensor:
        """Add the gradients of a step's micro-batches.

        Gradients are averaged over the data-parallel ranks, so `weight` for a mean over the global batch is their
        number divided by what is averaged over.

        Args:
            micro_batches: this rank's, as many on every rank.
            objective: what the model is asked for.
            weight: what the sum of losses is multiplied by before the backward pass.

        Returns:
            The sum of this rank's losses, without the weight, on the device; 0 on all but the last stage of a pipeline.
        """
        total = torch.zeros((), device=ranks.device())
        if self.settings.pp > 1:
            return self._learn_in_pipeline(micro_batches, objective, weight, total)
        expect_gradient(self.cross_entropies, weight * self._precision.loss_scale())
        for index, micro_batch in enumerate(micro_batches):
            with self._accumulating(last=index == len(micro_batches) - 1):
                output = self.forward(**objective.inputs(micro_batch))
                with record_function(HEAD_AND_LOSS):
                    loss = objective.loss_sum(output, micro_batch, self.cross_entropies)
                del output
                self.backward(loss * weight)
            total += loss.detach()
        if self.settings.plugin == "3d" and self.plugin.zero_stage == 0:
            self.model.sync_dp_grads()
        return total

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, nothing is dropped out and no gradient is kept; afterwards the random state is what it was.

        To be entered between steps. Gemini that moves weights (``gemini_auto``) must have done one step before.
        """
        self.model.eval()
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        try:
            with torch.no_grad(), torch.random.fork_rng(devices):
                yield
        finally:
            self.model.train()

    def measure(self, micro_batches: Sequence[BatchType], objective: Objective[BatchType]) -> torch.Tensor:
        """Return the sum of this rank's losses, as `learn` does, inside `measuring`; nothing is learned."""
        total = torch.zeros((), device=ranks.device())
        if self.settings.pp > 1:
            return self._learn_in_pipeline(micro_batches, objective, 0.0, total)
        for micro_batch in micro_batches:
            output = self.forward(**objective.inputs(micro_batch))
            total += objective.loss_sum(output, micro_batch, self.cross_entropies)
        return total

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of one loss, averaged over the data-parallel ranks."""
        self._precision.backward(loss)

    def _learn_in_pipeline(
        self, micro_batches: Sequence[BatchType], objective: Objective[BatchType], weight: float, total: torch.Tensor
    ) -> torch.Tensor:
        from colossal_llama2.engine.pipeline import MicroBatch

        def criterion(output: Any, micro_batch: Any) -> torch.Tensor:
            loss = objective.loss_sum(output, micro_batch.batch, self.cross_entropies)
            total.add_(loss.detach())
            return loss * (weight * len(micro_batches))  # the schedule divides by their number

        waiting = [MicroBatch(objective.inputs(micro_batch), micro_batch) for micro_batch in micro_batches]
        self.booster.execute_pipeline(iter(waiting), self.model, criterion, self.optimizer, return_loss=False)
        return total

    def _accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Context around forward and backward of a micro-batch: all but the last of a step need not synchronise."""
        partitions_gradients = self.settings.plugin == "3d" and self.plugin.zero_stage == 2
        if last or partitions_gradients or not self.plugin.support_no_sync():
            return nullcontext()
        return self.booster.no_sync(self.model, self.optimizer)

    def defer_head(self, fused: bool = True) -> None:
        """Never make logits, where the model and the plugin allow it: for a stage that does `cross_entropies` to them.

        What then stands in their place in the model's output is hidden states; see `DeferredHead`. A fused kernel
        computes their sum where there is one, unless that is not wanted.
        """
        self.cross_entropies = deferred(self, fused) or self.cross_entropies

    def step(self) -> StepOutcome:
        """Clip, update the weights, clear the gradients and move the schedule on by one step."""
        return self._step().read()

    def guarded_step(self, loss: torch.Tensor) -> UnreadOutcome:
        """Do what `step` does without waiting for it; from a loss on that is not finite no weight changes any more."""
        Guard.of(self.optimizer.unwrap(), loss.device).block_unless_finite(loss)
        return self._step()

    def _step(self) -> UnreadOutcome:
        with record_function(OPTIMIZER):
            outcome = self._precision.step(self.settings.gradient_clipping)
        self.optimizer.zero_grad()
        self.scheduler.step()
        return outcome

    def skip_step(self) -> None:
        """Move the schedule on without touching the weights; there has been no backward pass."""
        self.scheduler.step()

    def apply_settings(self) -> None:
        """Put this run's learning rate, decay and betas back after a checkpoint's were loaded over them.

        The learning rate of the next step is computed anew; unchanged settings give the checkpoint's own numbers.
        """
        adam, position = self._adam, self.scheduler.last_epoch
        self.scheduler.base_lrs = [adam.lr] * len(self._decays)
        factors = [multiplier(position) for multiplier in self.scheduler.lr_lambdas]
        self.scheduler._last_lr = [adam.lr * factor for factor in factors]
        for group, decay, lr in zip(self.optimizer.param_groups, self._decays, self.scheduler._last_lr, strict=True):
            group.update(lr=lr, initial_lr=adam.lr, betas=(adam.beta1, adam.beta2), eps=adam.eps, weight_decay=decay)

    def complete_optimizer_state(self) -> None:
        """Give zero moments to parameters that were never updated; ColossalAI cannot save ZeRO's without."""
        optimizer = self.optimizer.unwrap()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.start_state(parameter)

    def scaler_state(self) -> dict[str, float]:
        """State of the fp16 loss scaler, as plain numbers; empty when there is none."""
        return self._precision.scaler_state()

    def load_scaler_state(self, state: dict[str, float]) -> None:
        """Put `scaler_state` back."""
        if state:
            self._precision.load_scaler_state(state)


def _weights_rounded_by(dtype: torch.dtype, model: nn.Module) -> dict[nn.Parameter, torch.Tensor]:
    """Remember the weights that casting to `dtype` would round (bf16 rounds fp16); boosting replaces their storage."""
    return {p: p.data for p in model.parameters() if torch.promote_types(p.dtype, dtype) != dtype}
