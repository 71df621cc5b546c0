"""float8 goes into the right linears, stays near bf16, and leaves no trace in what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from colossal_llama2.engine import float8
from colossal_llama2.engine.float8 import check_float8, use_float8
from colossal_llama2.engine.plugins import PluginSettings
from colossal_llama2.engine.session import AdamSettings, Session
from colossal_llama2.errors import InputError

pytest.importorskip("torchao")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def build(intermediate: int = 48, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, intermediate_size=intermediate, **sizes)).to(dtype)


def test_trained_linears_of_decoder_layers_and_no_others() -> None:
    from torchao.float8.float8_linear import Float8Linear

    model = build()
    before = dict(model.named_parameters())
    names = use_float8(model, emulated=True)
    assert {name.rpartition(".")[2] for name in names} == set(LINEARS)
    assert len(names) == 2 * len(LINEARS)
    assert all(isinstance(model.get_submodule(name), Float8Linear) for name in names)
    assert type(model.lm_head) is nn.Linear
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before), "an optimizer may know them already"


def test_what_is_frozen_or_of_another_size_stays(capsys: pytest.CaptureFixture[str]) -> None:
    model = build(intermediate=40)
    model.model.layers[0].requires_grad_(False)
    names = use_float8(model, emulated=True)
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all(".layers.1." in name for name in names)
    assert "not model.layers.1.mlp.gate_proj, model.layers.1.mlp.up_proj" in capsys.readouterr().out
    model = build()
    model.model.layers.requires_grad_(False)
    with pytest.raises(InputError, match="finds no linear"):
        use_float8(model, emulated=True)


def test_outputs_and_gradients_are_those_of_three_bits_of_mantissa() -> None:
    """e4m3 rounds by 2**-4 at most, e5m2 by 2**-3; of a sum of products the errors partly cancel."""
    plain, turned = build(), build()
    use_float8(turned, emulated=True)
    linears = [model.model.layers[0].mlp.up_proj for model in (plain, turned)]
    torch.manual_seed(1)
    x, gradient = torch.randn(24, 32), torch.randn(24, 48)
    results = []
    for linear in linears:
        given = x.clone().requires_grad_()
        output = linear(given)
        output.backward(gradient)
        results.append((output.detach(), given.grad, linear.weight.grad))
    for exact, close in zip(*results, strict=True):
        deviation = float((exact - close).norm() / exact.norm())
        assert 1e-3 < deviation < 0.1, "below, nothing was rounded"


def curve(float8_as: Any, plugin: Any = "zero2") -> tuple[list[float], Session]:
    model = build()
    groups = [{"params": list(model.parameters()), "weight_decay": 0.0}]
    settings = PluginSettings(plugin, "bf16", float8=float8_as)
    session = Session(settings, model, groups, AdamSettings(lr=3e-3, eps=1e-4), lambda step: 1.0)
    losses = []
    for step in range(8):
        ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(step % 2))
        loss = session.forward(input_ids=ids, labels=ids, use_cache=False).loss
        session.backward(loss)
        session.step()
        losses.append(float(loss.detach()))
    return losses, session


@pytest.mark.parametrize("plugin", ["zero2", pytest.param("ddp", marks=pytest.mark.long)])
def test_the_curve_stays_near_that_of_bf16(one_rank: None, plugin: str) -> None:
    plain, _ = curve("no", plugin)
    rounded, session = curve("emulated", plugin)
    assert plain[-1] < plain[0] - 0.2, "nothing was learned, so nearness would show little"
    assert rounded != plain
    assert rounded == pytest.approx(plain, abs=0.05)
    assert session.parameter_names == [name for name, _ in build().named_parameters()]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (PluginSettings("gemini", "bf16", float8="yes"), "with --plugin gemini"),
        (PluginSettings("3d", "bf16", tp=2, float8="emulated"), "divided linears"),
        (PluginSettings("zero2", "fp32", float8="emulated"), "--mixed_precision fp32"),
        (PluginSettings("zero2", "bf16", float8="yes"), "no CUDA here"),
    ],
)
def test_what_cannot_be_had_is_refused(settings: PluginSettings, reason: str) -> None:
    if "CUDA" in reason and torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(InputError, match=reason):
        check_float8(settings)


def test_a_card_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(InputError, match=r"A100 has 8\.0"):
        check_float8(PluginSettings("zero2", "bf16", float8="yes"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    check_float8(PluginSettings("zero2", "bf16", float8="yes"))
    monkeypatch.setattr(float8.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="torchao"):
        check_float8(PluginSettings("zero2", "bf16", float8="yes"))


def test_what_is_saved_is_a_plain_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = build()
    use_float8(model, emulated=True)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    plain = build()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), plain.parameters(), strict=True))
    assert type(again.model.layers[0].mlp.up_proj) is nn.Linear
