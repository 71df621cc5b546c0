"""Which weights are trained and which of them decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from colossal_llama2.errors import InputError
from colossal_llama2.model.freezing import decay_groups, describe_trained, freeze_all_but_embeddings


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
