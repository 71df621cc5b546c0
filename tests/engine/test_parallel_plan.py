"""What a model can be divided into is known, or refused with the number that stands in the way, before it is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from colossal_llama2.engine.parallel_plan import COLUMN, REPLICATED, ROW, check_model, styles
from colossal_llama2.engine.plugins import PluginSettings
from colossal_llama2.errors import InputError


def tiny(kind: str, **changes: Any) -> Any:
    numbers = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **{**numbers, **heads, **changes})
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def asked(**degrees: Any) -> PluginSettings:
    return PluginSettings("3d", "bf16", **degrees)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_linear_of_a_layer_has_a_style(kind: str) -> None:
    model = tiny(kind)
    found = styles(model)
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in n}
    assert linears == {name for name, style in found.items() if style in (COLUMN, ROW)} != set()
    assert {n for n, s in found.items() if s == REPLICATED} == {
        n for n, _ in model.named_modules() if n.endswith(("q_norm", "k_norm"))
    }
    for degrees in ({"tp": 2}, {"pp": 2}, {"sp": 2}, {"tp": 2, "pp": 2}, {"tp": 2, "sp": 2, "sp_mode": "split_gather"}):
        check_model(asked(**degrees), model)


@pytest.mark.parametrize(
    ("kind", "degrees", "reason"),
    [
        ("gpt2", {"tp": 2}, "publishes no tensor-parallel plan; leave --tp at 1; zero2 and gemini"),
        ("phi3", {"tp": 2}, "a way that is not known here .colwise_gather_output"),
        ("gemma3_text", {"tp": 2}, "has a Gemma3TextScaledWordEmbedding"),
        ("granite", {"pp": 2}, "GraniteForCausalLM has not been proved in a pipeline .proved: llama"),
        ("llama", {"tp": 4}, "num_key_value_heads 2, which tp x sp = 4 does not divide"),
        ("llama", {"tp": 2, "sp": 2}, "num_key_value_heads 2, which tp x sp = 4 does not divide"),
        ("llama", {"pp": 4}, "has 2 layers, fewer than --pp x --pp_chunks = 4"),
        ("llama", {"pp": 2, "pp_chunks": 2}, "has 2 layers"),
    ],
)
def test_what_cannot_be_divided_is_refused(kind: str, degrees: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check_model(asked(**degrees), tiny(kind))


def test_a_model_without_a_plan_may_have_its_sequence_left_whole() -> None:
    check_model(asked(), tiny("gpt2", num_attention_heads=4))
