"""One model under one Booster plugin: forward, backward, step, the same five calls whatever the plugin does below."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from colossal_llama2.engine import compat, ranks
from colossal_llama2.engine.adapters import Adapter
from colossal_llama2.engine.master_weights import MasterWeights
from colossal_llama2.engine.plugins import INITIAL_LOSS_SCALE, PluginSettings, build_plugin

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class AdamSettings:
    """AdamW's numbers; the learning rate is the schedule's peak."""

    lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8


@dataclass(frozen=True)
class StepOutcome:
    """What one optimizer step did.

    Attributes:
        grad_norm: global norm of the unscaled gradients before clipping; infinite or NaN when they overflowed.
        skipped: True when half-precision gradients overflowed and the weights were left as they were.
    """

    grad_norm: float
    skipped: bool


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
        self.adapter: Adapter | None = None  # set on a LoRA run, whose checkpoints then hold the adapter alone
        self.plugin = build_plugin(settings, model, accumulates)
        self.booster = Booster(plugin=self.plugin)
        optimizer = FusedAdamW(parameter_groups, lr=adam.lr, betas=(adam.beta1, adam.beta2), eps=adam.eps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_multiplier)
        if settings.plugin == "ddp" or settings.precision == "fp32":
            model.float()  # ddp's master weights; and ZeRO computes fp32 in whatever the model is stored in
        model.train()
        rounded = _weights_rounded_by(DTYPES[settings.precision], model) if settings.plugin != "ddp" else {}
        self._adam, self._decays = adam, [group["weight_decay"] for group in optimizer.param_groups]
        # What is frozen is saved as it came, not as half precision rounded it; one rank writes, so one keeps it.
        self.frozen_weights = {
            name: rounded[p]
            for name, p in model.named_parameters()
            if p in rounded and not p.requires_grad and ranks.is_first()
        }
        self.parameter_names = [name for name, _ in model.named_parameters()]  # a tied weight has one name
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.model, self.optimizer, _, _, self.scheduler = self.booster.boost(model, optimizer, lr_scheduler=scheduler)
        # Plugins cast buffers with the weights; rotary frequencies in bf16 are off by radians at position 4096.
        for name, buffer in model.named_buffers():
            buffer.data = buffers[name].to(buffer.device)
        self.saved_weights = MasterWeights(self.model, self.optimizer)
        # Plugins make the masters from weights that they have cast already.
        if any(p.requires_grad for p in rounded):
            self.saved_weights.start_from({id(p): data for p, data in rounded.items()})
        self._precision = _AutocastPrecision(self) if settings.plugin == "ddp" else _ZeroPrecision(self)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def forward(self, **inputs: Any) -> Any:
        """Run the model in the precision asked for; what it returns is transformers' output object."""
        with self._precision.autocast():
            return self.model(**inputs)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Context around forward and backward of a micro-batch: all but the last of a step need not synchronise."""
        if last or not self.plugin.support_no_sync():
            return nullcontext()
        return self.booster.no_sync(self.model, self.optimizer)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of one micro-batch's loss.

        Gradients are averaged over the ranks, so a loss that is to be summed comes multiplied by the world size.
        """
        self._precision.backward(loss)

    def step(self) -> StepOutcome:
        """Clip, update the weights, clear the gradients and move the schedule on by one step."""
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
        if self.settings.plugin not in ("zero2", "zero2_cpu"):
            return
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


class _ZeroPrecision:
    """ZeRO casts the model and keeps masters and loss scale itself; here its overflow and norm are made visible."""

    def __init__(self, session: Session) -> None:
        self._session = session
        names = ("mixed_precision_mixin", "mix_precision_mixin")  # ZeRO's and Gemini's
        self._mixin = cast(
            Any, next((getattr(session.optimizer, n) for n in names if hasattr(session.optimizer, n)), None)
        )
        self._scaled = session.settings.precision == "fp16"
        self._overflowed = False
        if self._scaled:
            inner = self._mixin.should_skip_step

            def recorded() -> bool:
                self._overflowed = inner()
                return self._overflowed

            self._mixin.should_skip_step = recorded

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self._session.booster.backward(loss, self._session.optimizer)

    def step(self, max_norm: float) -> StepOutcome:
        scale = self._mixin.loss_scale if self._scaled else 1.0
        self._session.optimizer.step()
        if self._scaled and self._overflowed:
            return StepOutcome(grad_norm=float("inf"), skipped=True)
        return StepOutcome(grad_norm=float(self._session.optimizer.get_grad_norm()) / scale, skipped=False)

    def scaler_state(self) -> dict[str, float]:
        if not self._scaled:
            return {}
        scaler = self._mixin.grad_scaler
        return {
            "scale": float(scaler.scale.item()),
            "growth_step": float(scaler._growth_step),
            "hysteresis_step": float(scaler._hysteresis_step),
        }

    def load_scaler_state(self, state: dict[str, float]) -> None:
        scaler = self._mixin.grad_scaler
        scaler._scale.fill_(state["scale"])
        scaler._growth_step = int(state["growth_step"])
        scaler._hysteresis_step = int(state["hysteresis_step"])


class _AutocastPrecision:
    """DDP keeps fp32 weights; autocast computes in half precision, and torch's scaler guards fp16 gradients."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._dtype = DTYPES[session.settings.precision]
        self._device = ranks.device().type
        self._scaler = torch.amp.GradScaler(
            self._device, init_scale=INITIAL_LOSS_SCALE, enabled=self._dtype == torch.float16
        )

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device, self._dtype, enabled=self._dtype != torch.float32)

    def backward(self, loss: torch.Tensor) -> None:
        self._session.booster.backward(self._scaler.scale(loss), self._session.optimizer)

    def step(self, max_norm: float) -> StepOutcome:
        optimizer = self._session.optimizer.unwrap()
        self._scaler.unscale_(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else float("inf"))
        scale = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        return StepOutcome(grad_norm=float(norm), skipped=self._scaler.get_scale() < scale)

    def scaler_state(self) -> dict[str, float]:
        if not self._scaler.is_enabled():
            return {}
        state = self._scaler.state_dict()
        return {"scale": float(state["scale"]), "growth_step": float(state["_growth_tracker"])}

    def load_scaler_state(self, state: dict[str, float]) -> None:
        tracker = int(state["growth_step"])  # torch takes no float here, and complains only at the next step
        self._scaler.load_state_dict({**self._scaler.state_dict(), "scale": state["scale"], "_growth_tracker": tracker})
