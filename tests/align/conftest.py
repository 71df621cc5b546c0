"""Fixtures of the alignment's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.engine import ranks
from colossal_llama2.engine.plugins import PluginName, PluginSettings, Precision
from colossal_llama2.engine.session import AdamSettings, Session
from colossal_llama2.model.pretrained import load_for_training


@pytest.fixture
def one_rank() -> Iterator[None]:
    """Make a process group of this process alone."""
    ranks.launch(seed=0)
    yield
    ranks.close()


@pytest.fixture
def boosted(one_rank: None, tiny_model_dir: Path) -> Callable[..., Session]:
    """Give a function that boosts the tiny Llama, as train.py would."""

    def boost(plugin: PluginName = "zero2", precision: Precision = "fp32", model: Any = None) -> Session:
        model = load_for_training(tiny_model_dir, precision, False) if model is None else model
        groups = [{"params": list(model.parameters()), "weight_decay": 0.0}]
        return Session(PluginSettings(plugin, precision), model, groups, AdamSettings(lr=1e-3), lambda step: 1.0)

    return boost
