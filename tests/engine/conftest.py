"""A model small enough to add up by hand, and the benchmark's measurements of a training step."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama2.model.model_shape import ModelShape, shape_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny_shape() -> ModelShape:
    """Give a Llama of 1,704 parameters: embedding and head 256 each, two layers of 592, a norm of 8."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    with torch.device("meta"):
        return shape_of(LlamaForCausalLM(config))


@pytest.fixture(scope="session")
def training_memory() -> Any:
    """Give the module that measures what a training step takes."""
    name = "training_memory"
    specification = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look themselves up there
    specification.loader.exec_module(module)
    return module
