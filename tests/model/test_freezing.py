"""Which weights are trained and which of them decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from colossal_llama2.errors import InputError
from colossal_llama2.model.freezing import (
    check_base_rows_kept,
    decay_groups,
    describe_trained,
    embedding_parameters,
    freeze_all_but_embeddings,
    keep_base_rows,
)


def tiny(tied: bool, kind: str = "qwen2") -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind,
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("tied", [False, True])
def test_freezing_leaves_the_embeddings(tied: bool) -> None:
    model = tiny(tied)
    freeze_all_but_embeddings(model)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == (["model.embed_tokens.weight"] if tied else ["model.embed_tokens.weight", "lm_head.weight"])
    assert str(sum(p.numel() for p in model.parameters() if p.requires_grad)) in describe_trained(model)


def test_a_model_without_embeddings_is_refused() -> None:
    with pytest.raises(InputError, match="names no embeddings"):
        freeze_all_but_embeddings(nn.Linear(2, 2))


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_decay_and_the_rest_does_not(tied: bool) -> None:
    model = tiny(tied)
    groups = decay_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    members = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in groups}  # type: ignore[attr-defined]
    assert members[0.1] | members[0.0] == set(names.values())
    assert not members[0.1] & members[0.0]
    assert any(name.endswith("bias") for name in members[0.0]), "this model has no biases, so they were not tested"
    assert all("norm" in name or name.endswith("bias") or "embed" in name for name in members[0.0])
    assert ("lm_head.weight" in members[0.1]) is not tied


def test_asking_lets_everything_decay() -> None:
    model = tiny(False)
    (group,) = decay_groups(model, 0.1, decay_all=True)
    assert len(group["params"]) == len(list(model.parameters()))  # type: ignore[arg-type]


def test_only_trained_parameters_reach_the_optimizer() -> None:
    model = tiny(False)
    freeze_all_but_embeddings(model)
    groups = decay_groups(model, 0.1)
    given = [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    assert len(given) == 2
    assert all(isinstance(p, torch.Tensor) and p.requires_grad for p in given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_only_some_rows_get_a_gradient_and_an_overflow_elsewhere_does_not_spoil_it(dtype: torch.dtype) -> None:
    weight = nn.Parameter(torch.ones(6, 3, dtype=dtype))
    keep_base_rows(weight, range(2, 4))
    gradient = torch.arange(18, dtype=dtype).reshape(6, 3) + 1
    gradient[0], gradient[5] = float("inf"), float("nan")
    given = gradient.clone()
    (weight * gradient).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad[2:4], gradient[2:4])
    assert not weight.grad[:2].any()
    assert not weight.grad[4:].any()
    assert torch.equal(gradient[1:5], given[1:5]), "the gradient that came in may be somebody else's too"


def test_a_rank_may_hold_no_row_that_learns() -> None:
    weight = nn.Parameter(torch.ones(4, 2))
    keep_base_rows(weight, range(0))
    weight.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_what_must_not_decay_does_not_whatever_is_asked() -> None:
    model = tiny(False)
    kept = embedding_parameters(model)
    assert len(kept) == 2
    groups = decay_groups(model, 0.1, decay_all=True, never=kept)
    assert [p for group in groups if group["weight_decay"] == 0.0 for p in group["params"]] == kept  # type: ignore[attr-defined]


def test_a_parameter_that_was_replaced_is_noticed() -> None:
    model = tiny(False)
    for parameter in embedding_parameters(model):
        keep_base_rows(parameter, range(4, 8))
    check_base_rows_kept(model)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach()[:16])
    with pytest.raises(RuntimeError, match="replaced"):
        check_base_rows_kept(model)
