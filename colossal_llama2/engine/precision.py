"""What computing in half precision asks of a step: loss scale, overflow, gradient norm, and their state to keep."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch

from colossal_llama2.engine import ranks
from colossal_llama2.engine.plugins import INITIAL_LOSS_SCALE

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class StepOutcome:
    """What one optimizer step did.

    Attributes:
        grad_norm: global norm of the unscaled gradients before clipping; infinite or NaN when they overflowed.
        skipped: True when half-precision gradients overflowed and the weights were left as they were.
    """

    grad_norm: float
    skipped: bool


@dataclass(frozen=True)
class UnreadOutcome:
    """A step's outcome whose norm may still lie on the device, where reading it would wait for the step.

    Attributes:
        grad_norm: as in `StepOutcome`; a scalar where the device computes it, and then a guarded optimizer has left the
            weights alone if it is not finite.
        skipped: as in `StepOutcome`.
    """

    grad_norm: torch.Tensor | float
    skipped: bool

    def read(self) -> StepOutcome:
        """Wait for the norm."""
        return StepOutcome(float(self.grad_norm), self.skipped)


class MasterPrecision:
    """ZeRO casts the model and keeps masters and loss scale itself; here its overflow and norm are made visible."""

    def __init__(self, session: Any) -> None:
        self._session = session
        names = ("mixed_precision_mixin", "mix_precision_mixin", "mixed_precision")  # ZeRO's, Gemini's, plain 3d's
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

    def loss_scale(self) -> float:
        return float(self._mixin.loss_scale) if self._scaled else 1.0

    def backward(self, loss: torch.Tensor) -> None:
        self._session.booster.backward(loss, self._session.optimizer)

    def step(self, max_norm: float) -> UnreadOutcome:
        scale = self.loss_scale()
        self._session.optimizer.step()
        if self._scaled and self._overflowed:
            return UnreadOutcome(grad_norm=math.inf, skipped=True)
        return UnreadOutcome(grad_norm=self._session.optimizer.get_grad_norm() / scale, skipped=False)

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
        scaler._hysteresis_step = int(state.get("hysteresis_step", scaler._hysteresis_step))  # DDP's scaler has none


class AutocastPrecision:
    """DDP keeps fp32 weights; autocast computes in half precision, and torch's scaler guards fp16 gradients."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._dtype = DTYPES[session.settings.precision]
        self._device = ranks.device().type
        self._scaler = torch.amp.GradScaler(
            self._device, init_scale=INITIAL_LOSS_SCALE, enabled=self._dtype == torch.float16
        )

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device, self._dtype, enabled=self._dtype != torch.float32)

    def loss_scale(self) -> float:
        return float(self._scaler.get_scale())

    def backward(self, loss: torch.Tensor) -> None:
        self._session.booster.backward(self._scaler.scale(loss), self._session.optimizer)

    def step(self, max_norm: float) -> UnreadOutcome:
        optimizer = self._session.optimizer.unwrap()
        self._scaler.unscale_(optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else float("inf"))
        if not self._scaler.is_enabled():
            if optimizer.guard is not None:
                optimizer.guard.block_unless_finite(norm)
            optimizer.step()
            return UnreadOutcome(grad_norm=norm, skipped=False)
        scale = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        return UnreadOutcome(grad_norm=float(norm), skipped=self._scaler.get_scale() < scale)

    def scaler_state(self) -> dict[str, float]:
        if not self._scaler.is_enabled():
            return {}
        state = self._scaler.state_dict()
        return {"scale": float(state["scale"]), "growth_step": float(state["_growth_tracker"])}

    def load_scaler_state(self, state: dict[str, float]) -> None:
        tracker = int(state["growth_step"])  # torch takes no float here, and complains only at the next step
        self._scaler.load_state_dict({**self._scaler.state_dict(), "scale": state["scale"], "_growth_tracker": tracker})
