"""What `--fused_kernels` says and leaves alone; the kernels' numbers are compared in benchmarks/liger_kernels.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from colossal_llama2.model import fused_kernels
from colossal_llama2.model.fused_kernels import fuse, liger_is_usable


def model(model_type: str = "llama") -> Any:
    return SimpleNamespace(config=SimpleNamespace(model_type=model_type))


def test_nothing_is_fused_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not liger_is_usable()
    assert fuse(model(), "auto") == ""
    assert fuse(model(), "off") == "fused kernels: off"


def test_why_nothing_is_fused_on_cuda_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fused_kernels.importlib.util, "find_spec", lambda name: None)
    assert "pip install liger-kernel" in fuse(model(), "auto")
    monkeypatch.setattr(fused_kernels, "liger_is_usable", lambda: True)
    assert "not with gpt_oss" in fuse(model("gpt_oss"), "auto")


def test_a_plugin_that_gathers_weights_keeps_its_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fused_kernels, "liger_is_usable", lambda: True)
    monkeypatch.setattr(fused_kernels, "put_in", lambda model, kinds: asked.append(kinds))
    assert "RMSNorm, rotary embedding, SwiGLU by liger-kernel" in fuse(model(), "auto")
    assert "not RMSNorm" in fuse(model(), "auto", gathers_weights=True)
    assert asked == [["rms_norm", "rope", "swiglu"], ["rope", "swiglu"]]
