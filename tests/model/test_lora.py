"""Which layers get an adapter, what starts as what, and what is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama2.errors import InputError
from colossal_llama2.model.lora import add_lora, plan_lora, trained_parameters

LINEAR = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def test_every_linear_layer_but_the_head_gets_an_adapter(make_model: Callable[..., Path]) -> None:
    plan = plan_lora(make_model(), 3, 6, 0.0, [], embeddings=False)
    assert plan.targets == LINEAR
    assert len(plan.shapes) == 2 * 7 * 2, "A and B of seven layers in each of two"
    assert not any("lm_head" in name or "embed" in name for name in plan.shapes)
    assert plan.shapes["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"] == (3, 24)
    assert plan.shapes["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"] == (16, 3)


def test_targets_are_chosen_by_name_and_a_wrong_one_is_named(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    plan = plan_lora(folder, 2, 4, 0.0, ["v_proj", "layers.0.self_attn.q_proj"], embeddings=False)
    assert len(plan.shapes) == 2 * (2 + 1)
    for wrong in ("q_prj", "lm_head", "embed_tokens", "proj", "norm"):
        with pytest.raises(InputError, match=rf"--lora_targets {wrong}.*choose among down_proj, gate_proj"):
            plan_lora(folder, 2, 4, 0.0, ["q_proj", wrong], embeddings=False)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_changes_nothing_at_first_and_is_all_that_is_trained(
    make_model: Callable[..., Path], tied: bool, dtype: torch.dtype
) -> None:
    folder = make_model(tie_word_embeddings=tied, dtype=dtype)
    ids = torch.arange(9)[None]
    before = loaded(folder)(ids).logits
    model = loaded(folder)
    add_lora(model, plan_lora(folder, 4, 8, 0.0, [], embeddings=True), seed=1)
    assert torch.equal(model(ids).logits, before)
    trained = trained_parameters(model)
    assert len(trained) == 28 + (1 if tied else 2)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    adapters = {name: p for name, p in trained.items() if "lora_" in name}
    assert {p.dtype for p in adapters.values()} == {torch.float32}, "masters of half-precision training start exact"
    assert all(bool(p.any()) == (".lora_A." in name) for name, p in adapters.items())
    assert sum(p.requires_grad for p in model.parameters()) == len(trained)


def test_the_same_seed_draws_the_same_adapter_whatever_was_drawn_before(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    plan = plan_lora(folder, 4, 8, 0.0, [], embeddings=False)
    drawn: list[torch.Tensor] = []
    for seed in (5, 5, 6):
        torch.rand(len(drawn) + 1)
        model = loaded(folder)
        before = torch.get_rng_state()
        add_lora(model, plan, seed)
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(torch.cat([p.detach().flatten() for p in trained_parameters(model).values()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_dropout_reaches_the_adapter(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    model = loaded(folder)
    add_lora(model, plan_lora(folder, 4, 8, 0.5, [], embeddings=False), seed=0)
    for parameter in trained_parameters(model).values():
        torch.nn.init.normal_(parameter)
    ids = torch.arange(9)[None]
    assert not torch.equal(model.train()(ids).logits, model(ids).logits)
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)
