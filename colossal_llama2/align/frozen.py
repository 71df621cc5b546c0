"""Models that only judge: the reference policy and the reward model, whole on every rank and never trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from colossal_llama2.engine import ranks
from colossal_llama2.engine.master_weights import boosted_module
from colossal_llama2.engine.session import Session

Forward = Callable[..., Any]
"""Takes a model's arguments, returns what the model returns; without gradients."""


class FrozenModel:
    """A model in the precision of training, 2 bytes a parameter in half precision.

    Args:
        model: as it was loaded, on the CPU.
        dtype: what it computes in.
        offload: keep it in host memory, and on the device only while it judges.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, offload: bool) -> None:
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._model = model.eval().requires_grad_(False).to(dtype)
        for name, buffer in self._model.named_buffers():  # rotary frequencies in bf16 are off by radians
            buffer.data = buffers[name]
        self._offload = offload and ranks.device().type != "cpu"
        if not self._offload:
            self._model.to(ranks.device())

    @contextmanager
    def ready(self) -> Iterator[Forward]:
        """Inside, it lies on the device; gives what runs it."""
        if self._offload:
            self._model.to(ranks.device())
        try:
            with torch.no_grad():
                yield self._model
        finally:
            if self._offload:
                self._model.to("cpu")


@dataclass(frozen=True)
class AdapterOff:
    """The policy without its adapter, as a reference: it is the frozen base, so it costs no memory.

    Attributes:
        session: trains an adapter, and nothing of the base.
    """

    session: Session

    @contextmanager
    def ready(self) -> Iterator[Forward]:
        """Inside, the adapter adds nothing; gives what runs the model."""
        layers = _adapter_layers(boosted_module(self.session.model))
        assert layers, "the session trains an adapter"
        for layer in layers:
            layer._disable_adapters = True  # peft's own switch would also set requires_grad, under the optimizer
        try:
            yield self.session.infer
        finally:
            for layer in layers:
                layer._disable_adapters = False


def _adapter_layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
