"""The patches hold where they must and complain where they cannot."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest
import torch

from colossal_llama2.engine import compat
from colossal_llama2.errors import InputError


def test_another_colossalai_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.6.0")
    monkeypatch.setattr(compat, "_installed", False)
    with pytest.raises(InputError, match=r"0\.6\.0.*0\.5\.0"):
        compat.install()


def test_a_missing_colossalai_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(compat, "_installed", False)
    with pytest.raises(InputError, match="requirements-engine"):
        compat.install()


def test_a_patch_whose_target_is_gone_fails_loudly() -> None:
    with pytest.raises(RuntimeError, match="must be revised"):
        compat._must_have(object(), "step")


def test_stubs_do_not_stay_in_the_way() -> None:
    compat.install()
    for name in ("galore_torch", "bitsandbytes"):
        module = sys.modules.get(name)
        assert module is None or getattr(module, "__file__", None), f"{name} is still a stub"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without CUDA")
def test_the_cpu_accelerator_answers_what_training_asks() -> None:
    compat.install()
    from colossalai.accelerator import get_accelerator

    accelerator = get_accelerator()
    assert accelerator.current_device() == torch.device("cpu")
    assert accelerator.get_device_properties().total_memory > 0
    assert accelerator.memory_allocated() > 0
    with accelerator.stream(accelerator.Stream()):
        accelerator.current_stream().wait_stream(accelerator.default_stream())
    state = accelerator.get_rng_state()
    assert state.dtype == torch.uint8


def test_fp16_gradients_are_divided_by_the_scale_they_were_multiplied_with() -> None:
    """On the step where the loss scale grows, ColossalAI 0.5.0 alone would divide by the doubled scale."""
    compat.install()
    from colossalai.amp.naive_amp.mixed_precision_mixin.fp16 import FP16MixedPrecisionMixin

    class Mixin(FP16MixedPrecisionMixin):
        def check_local_overflow(self) -> bool:
            return False

        def check_overflow(self) -> bool:
            return False

    mixin = Mixin(initial_scale=8.0, growth_interval=1)
    scaled = mixin.pre_backward(torch.tensor(1.0))
    assert not mixin.should_skip_step()
    assert mixin.loss_scale == 16.0, "the scale did not grow, so this test shows nothing"
    assert mixin.get_grad_div_scale() == float(scaled) == 8.0
