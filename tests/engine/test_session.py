"""A boosted model computes what the model computed, and its checkpoint holds what the run has, whatever the plugin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from colossal_llama2.engine import ranks
from colossal_llama2.engine.plugins import PluginName, PluginSettings
from colossal_llama2.engine.session import AdamSettings, Session


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    """Make a process group of this process alone."""
    ranks.launch(seed=0)
    yield
    ranks.close()


def tiny_llama(tie: bool = False) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=tie,
    )
    return LlamaForCausalLM(config)


def boosted(model: Any, plugin: PluginName, precision: Any = "bf16") -> Session:
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    return Session(PluginSettings(plugin, precision), model, groups, AdamSettings(), lambda step: 1.0)


@pytest.mark.parametrize("plugin", ["zero2", "gemini", "ddp"])
def test_rotary_frequencies_stay_as_exact_as_they_came(plugin: PluginName) -> None:
    model = tiny_llama()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any(not torch.equal(buffer, buffer.bfloat16().float()) for buffer in before.values()), "bf16 holds them all"
    boosted(model, plugin)
    after = dict(model.named_buffers())
    assert after.keys() == before.keys()
    for name, buffer in after.items():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer.cpu(), before[name])


@pytest.mark.parametrize("plugin", ["zero2", "zero2_cpu", "ddp"])
def test_fp32_is_fp32_whatever_the_model_is_stored_in(plugin: PluginName) -> None:
    session = boosted(tiny_llama().bfloat16(), plugin, "fp32")
    assert {parameter.dtype for parameter in session.model.unwrap().parameters()} == {torch.float32}


@pytest.mark.parametrize("plugin", ["zero2", "zero2_cpu", "gemini", "gemini_auto", "ddp"])
def test_masters_start_from_the_weights_as_they_came(plugin: PluginName, tmp_path: Path) -> None:
    model = tiny_llama()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in before.values()), "bf16 holds them all"
    session = boosted(model, plugin)
    with session.saved_weights.in_place():
        session.booster.save_model(session.model, str(tmp_path), shard=True, use_safetensors=True)
    saved = {name: tensor for path in tmp_path.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert saved.keys() == before.keys()
    assert all(torch.equal(saved[name], before[name]) for name in before)
