"""What boosting left of an adapter with the ranks must together be all of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from colossal_llama2.engine import adapters
from colossal_llama2.engine.adapters import Adapter, attach_adapter
from colossal_llama2.model.lora import LoraPlan

NAMES = ["layers.0.lora_A", "layers.0.lora_B", "layers.1.lora_A", "layers.1.lora_B", "embed"]


def held_by(names: list[str]) -> Any:
    """Give a session whose model has parameters of these names, and one that is frozen."""
    model = nn.Module()
    for name in [*names, "frozen"]:
        owner = model
        *path, last = f"{name}.default.weight".split(".")
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        owner.register_parameter(last, nn.Parameter(nn.Linear(1, 1).weight, requires_grad=name != "frozen"))
    return SimpleNamespace(model=SimpleNamespace(unwrap=lambda: model), adapter=None)


@pytest.mark.parametrize(
    ("first", "others", "complaint"),
    [
        (NAMES[:2], NAMES[2:], None),
        ([*NAMES[:2], "embed"], [*NAMES[2:], "lm_head"], None),  # a tied weight at both ends of a pipeline
        (NAMES[:2], [], "hold 2 of the adapter's 5 tensors; missing, unknown or of another shape: .*embed"),
        (NAMES, ["layers.2.lora_A"], "hold 6 of the adapter's 5 tensors.*layers.2.lora_A"),
    ],
)
def test_a_tensor_too_few_or_too_many_is_noticed_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: list[str], others: list[str], complaint: str | None
) -> None:
    keys = [f"base_model.model.{name}.weight" for name in NAMES]
    plan = LoraPlan(2, 4, 0.0, ("q_proj",), True, dict.fromkeys(keys, (1, 1)))
    theirs = [f"base_model.model.{name}.weight" for name in others]
    monkeypatch.setattr(adapters.ranks, "world_size", lambda: 2)
    monkeypatch.setattr(
        adapters.dist, "all_gather_object", lambda out, held: out.__setitem__(slice(None), [held, theirs])
    )
    session = held_by(first)
    adapter = Adapter(plan, tmp_path, "print")
    if complaint is None:
        attach_adapter(session, adapter)
        assert session.adapter is adapter
        return
    with pytest.raises(RuntimeError, match=complaint):
        attach_adapter(session, adapter)
