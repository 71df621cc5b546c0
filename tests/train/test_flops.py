"""FLOPs against torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from colossal_llama2.model.freezing import freeze_all_but_embeddings
from colossal_llama2.train.flops import StepFlops, peak_flops, step_flops


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


def test_equals_a_recount_of_every_product_in_float64() -> None:
    """By hand: 7 matrices a layer and the head, three products each; pairs of a token and what it sees."""
    model = model_of(128)
    lengths = [20, 12]
    products = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            products += 3 * 2.0 * sum(lengths) * module.in_features * module.out_features
    # each of 3 layers and 4 heads of 16 numbers: scores and values, once forward and twice backward; the diagonal,
    # half a pair a token, is the only difference between m^2 / 2 and the pairs of a causal mask
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    attention = 3 * 3 * 4 * 2 * 2.0 * 16 * pairs
    diagonal = 3 * 3 * 4 * 2 * 2.0 * 16 * sum(lengths) / 2
    assert step_flops(model).of(sum(lengths), lengths) == products + attention - diagonal


@pytest.mark.parametrize(("length", "window"), [(5, 8), (8, 8), (30, 8)])
def test_a_window_sees_no_more_than_it_does(length: int, window: int) -> None:
    """Pairs counted one by one, up to the half pair a token of the diagonal."""
    whole, windowed = StepFlops(0, 0, 16), StepFlops(0, 0, 0, window_width=16, window=window)
    pairs = sum(min(place + 1, window) for place in range(length))
    assert windowed.of(0, [length]) == pytest.approx(12 * 16 * pairs, rel=0, abs=12 * 16 * length / 2)
    assert windowed.of(0, [length]) <= whole.of(0, [length])
    assert (windowed.of(0, [length]) == whole.of(0, [length])) == (length <= window)


def test_recomputing_is_not_counted() -> None:
    model = model_of(32)
    before = step_flops(model)
    model.gradient_checkpointing_enable()
    assert step_flops(model) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="cards have their data sheets")
def test_a_cpu_is_measured() -> None:
    peak, source = peak_flops(torch.device("cpu"), torch.float32)
    assert peak > 1e8
    assert "measured" in source
