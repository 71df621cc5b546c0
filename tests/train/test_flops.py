"""FLOPs against torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from colossal_llama2.model.freezing import freeze_all_but_embeddings
from colossal_llama2.train.flops import peak_flops, step_flops


def model_of(vocabulary: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("frozen", [False, True])
def test_equals_torchs_counter_but_for_the_causal_half(frozen: bool) -> None:
    """Eager attention computes the whole square, so the counter sees the attention of our formula twice."""
    model = model_of(128)
    if frozen:
        freeze_all_but_embeddings(model)
    ids = torch.randint(0, 128, (1, 32))
    with FlopCounterMode(display=False) as counter:
        model(ids, use_cache=False).logits.sum().backward()
    flops = step_flops(model)
    attention = flops.of(0, [32])
    counted = counter.get_total_flops()
    assert attention > 0
    # the rotary embedding's outer product is the one matmul that is not the model's weights
    assert abs(counted - (flops.of(32, []) + 2 * attention)) / counted < 0.01


def test_documents_cost_less_than_one_long_one() -> None:
    flops = step_flops(model_of(32))
    assert flops.of(64, [32, 32]) < flops.of(64, [64])
    assert flops.of(64, []) == 64 * 6 * flops.matmul_weights


@pytest.mark.skipif(torch.cuda.is_available(), reason="cards have their data sheets")
def test_a_cpu_is_measured() -> None:
    peak, source = peak_flops(torch.device("cpu"), torch.float32)
    assert peak > 1e8
    assert "measured" in source
