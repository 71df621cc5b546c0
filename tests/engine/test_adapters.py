"""An adapter's file has every tensor, also when the ranks hold different layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from colossal_llama2.engine import adapters
from colossal_llama2.engine.adapters import Adapter, attach_adapter, save_adapter
from colossal_llama2.model.adapter_files import BASE_FILE, CONFIG_FILE, WEIGHTS_FILE
from colossal_llama2.model.lora import LoraPlan

Stage = dict[str, torch.Tensor]
FIRST = {"layers.0.lora_A.default.weight": torch.rand(2, 3), "layers.0.lora_B.default.weight": torch.rand(3, 2)}
LAST = {"layers.1.lora_A.default.weight": torch.rand(2, 3), "layers.1.lora_B.default.weight": torch.rand(3, 2)}
SHARED = {"embed.weight": torch.rand(4, 3)}


class Held(nn.Module):
    """What one rank holds, under the names of the whole model."""

    def __init__(self, tensors: Stage) -> None:
        super().__init__()
        self._tensors = {name: nn.Parameter(tensor.bfloat16()) for name, tensor in tensors.items()}
        self._tensors["frozen.weight"] = nn.Parameter(torch.ones(2), requires_grad=False)
        self.masters = tensors

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self._tensors.items()


def session_of(tensors: Stage, plan: LoraPlan, base: Path) -> Any:
    model = Held(tensors)

    @contextmanager
    def in_place() -> Iterator[None]:
        kept = {name: p.data for name, p in model.named_parameters()}
        for name, master in model.masters.items():
            model._tensors[name].data = master.clone()
        yield
        for name, data in kept.items():
            model._tensors[name].data.zero_()  # a copy must have been taken
            model._tensors[name].data = data

    return SimpleNamespace(
        adapter=Adapter(plan, base, "print"),
        model=SimpleNamespace(unwrap=lambda: model),
        saved_weights=SimpleNamespace(in_place=in_place),
    )


@pytest.fixture
def save(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Give a function that saves as a number of ranks would, the later ones first."""

    def saved(stages: list[Stage], expected: Stage) -> Path:
        names = [[f"base_model.model.{name.replace('.default.', '.')}" for name in stage] for stage in stages]
        shapes = {f"base_model.model.{n.replace('.default.', '.')}": tuple(t.shape) for n, t in expected.items()}
        plan = LoraPlan(2, 4, 0.0, ("q_proj",), True, shapes)
        target = tmp_path / "adapter"
        target.mkdir()
        monkeypatch.setattr(adapters.ranks, "world_size", lambda: len(stages))
        monkeypatch.setattr(adapters.ranks, "barrier", lambda: None)
        monkeypatch.setattr(adapters.dist, "all_gather_object", lambda out, own: out.__setitem__(slice(None), names))
        for rank in reversed(range(len(stages))):
            monkeypatch.setattr(adapters.ranks, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(adapters.ranks, "is_first", lambda rank=rank: rank == 0)
            save_adapter(session_of(stages[rank], plan, tmp_path), target)
        return target

    return saved


def test_every_stage_s_masters_arrive(save: Any) -> None:
    whole = {**SHARED, **FIRST, **LAST}
    # a pipeline of two stages with a tied embedding in both, twice over
    folder = save([{**SHARED, **FIRST}, {**SHARED, **LAST}, {**SHARED, **FIRST}, {**SHARED, **LAST}], whole)
    assert {path.name for path in folder.iterdir()} == {WEIGHTS_FILE, CONFIG_FILE, BASE_FILE}
    stored = load_file(folder / WEIGHTS_FILE)
    assert len(stored) == len(whole) == 5
    for name, tensor in whole.items():
        assert torch.equal(stored[f"base_model.model.{name.replace('.default.', '.')}"], tensor)


@pytest.mark.parametrize("stages", [[FIRST], [FIRST, {}], [FIRST, {**LAST, **SHARED}]])
def test_one_tensor_too_few_or_too_many_and_nothing_is_saved(save: Any, tmp_path: Path, stages: list[Stage]) -> None:
    with pytest.raises(RuntimeError, match="of the adapter's 4 tensors; missing, unknown or of another shape"):
        save(stages, {**FIRST, **LAST})
    assert not (tmp_path / "adapter" / WEIGHTS_FILE).exists()


def test_what_boosting_lost_is_noticed_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shapes = {f"base_model.model.{n.replace('.default.', '.')}": tuple(t.shape) for n, t in {**FIRST, **LAST}.items()}
    plan = LoraPlan(2, 4, 0.0, ("q_proj",), False, shapes)
    monkeypatch.setattr(adapters.ranks, "world_size", lambda: 2)
    session = session_of(FIRST, plan, tmp_path)
    others = {name: shape for name, shape in shapes.items() if "layers.1" in name}
    for theirs, complaint in ((others, None), ({}, "2 of the adapter's 4"), ({**others, "x": (1,)}, "5 of")):
        monkeypatch.setattr(
            adapters.dist,
            "all_gather_object",
            lambda out, held, theirs=theirs: out.__setitem__(slice(None), [held, theirs]),
        )
        if complaint is None:
            attach_adapter(session, session.adapter)
            continue
        with pytest.raises(RuntimeError, match=complaint):
            attach_adapter(session, session.adapter)
