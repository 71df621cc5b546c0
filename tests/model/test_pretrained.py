"""Only what can be trained document by document is loaded for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama2.errors import InputError
from colossal_llama2.model.pretrained import check_same_shape, load_for_training, stored_dtype

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def folder_of(kind: str, folder: Path, dtype: torch.dtype = torch.float32, **extra: Any) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**SIZES, **extra})
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_come_in_the_dtype_they_are_stored_in(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    folder = folder_of(kind, tmp_path / "model", dtype)
    assert {parameter.dtype for parameter in load_for_training(folder, "bf16", False).parameters()} == {dtype}
    assert stored_dtype(folder) == dtype


@pytest.mark.parametrize(
    ("kind", "extra", "reason"),
    [
        ("bloom", {"n_layer": 2, "n_head": 4}, "attention of its own"),
        ("mamba", {"state_size": 4}, "linear_attention"),
    ],
)
def test_a_model_that_would_mix_documents_is_refused(
    tmp_path: Path, kind: str, extra: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        load_for_training(folder_of(kind, tmp_path / "model", **extra), "bf16", False)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_for_training(tmp_path, "bf16", False)


def test_another_shape_is_named_and_another_dtype_is_none(tmp_path: Path) -> None:
    first = folder_of("llama", tmp_path / "first")
    check_same_shape(first, folder_of("llama", tmp_path / "half", torch.float16))
    with pytest.raises(InputError, match="hidden_size is 64, not 32"):
        check_same_shape(first, folder_of("llama", tmp_path / "wide", hidden_size=64))
