"""The frozen model computes what the model itself computes, with rows from outside in the place of stored ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from colossal_llama2.errors import InputError
from colossal_llama2.model.frozen_model import FrozenModel

IDS = torch.tensor([[1, 5, 17, 9], [30, 2, 2, 8]])
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def check_like_itself(folder: Path) -> FrozenModel:
    frozen = FrozenModel(folder, "cpu")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(IDS, output_hidden_states=True)
        states = frozen.states(IDS, layer=1)
    assert torch.allclose(states.last, expected.hidden_states[-1], atol=1e-6)
    assert torch.allclose(states.matched, expected.hidden_states[1], atol=1e-6)
    logits = frozen.logits(states.last, frozen.output_rows, frozen.output_bias)
    assert torch.allclose(logits, expected.logits, atol=1e-4)
    # rows 3 and above come from outside, times what a row is multiplied by on its way in: the same again
    rows = frozen.input_rows[3:].clone().requires_grad_()
    outside = frozen.states(IDS, None, num_base=3, rows=rows)
    assert torch.allclose(outside.last, states.last, atol=1e-4)
    outside.last.square().sum().backward()
    assert rows.grad is not None
    touched = rows.grad.abs().sum(1).nonzero()[:, 0] + 3
    assert set(touched.tolist()) == {5, 17, 9, 30, 8}
    assert all(parameter.grad is None for parameter in frozen._model.parameters())
    return frozen


@pytest.mark.parametrize("tied", [False, True])
def test_llama(tied: bool, make_model: Callable[..., Path]) -> None:
    frozen = check_like_itself(make_model(tie_word_embeddings=tied))
    assert frozen.tied is tied
    assert (frozen.num_layers, frozen.context_length) == (2, 64)


def test_models_that_scale_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, pad_token_id=0)).save_pretrained(tmp_path / "gemma")
    assert check_like_itself(tmp_path / "gemma")._input_scale == pytest.approx(4.0)
    granite = GraniteConfig(**{k: v for k, v in SIZES.items() if k != "head_dim"}, logits_scaling=8.0)
    GraniteForCausalLM(granite).save_pretrained(tmp_path / "granite")
    assert check_like_itself(tmp_path / "granite")._output_scale == pytest.approx(1 / 8)
    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2)).save_pretrained(tmp_path / "gpt2")
    check_like_itself(tmp_path / "gpt2")


def test_a_head_that_is_more_than_a_product_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(**SIZES, pad_token_id=0, final_logit_softcapping=0.05)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    with pytest.raises(InputError, match="output head does more than scale rows"):
        FrozenModel(tmp_path / "gemma", "cpu")


def test_no_such_device(make_model: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="unknown device"):
        FrozenModel(make_model(), "abacus")
