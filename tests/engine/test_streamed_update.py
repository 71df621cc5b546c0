"""ZeRO's update in pieces is the one of ColossalAI to the last bit, and masters may lie in two places."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from colossal_llama2.engine import compat, streamed_update
from colossal_llama2.engine.plugins import PluginName, PluginSettings, Precision
from colossal_llama2.engine.session import AdamSettings, Session
from colossal_llama2.engine.streamed_update import bring_to_device, host_share


@pytest.fixture(scope="module")
def stock_step() -> Any:
    """Give ColossalAI's own step, from a module that nothing has patched."""
    compat.install()
    specification = importlib.util.find_spec("colossalai.zero.low_level.low_level_optim")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    step = module.LowLevelZeroOptimizer.step
    assert step is not streamed_update.step_in_pieces
    return step


@pytest.fixture
def zero(one_rank: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give ColossalAI's optimizer, whose step a test may change."""
    compat.install()
    from colossalai.zero.low_level.low_level_optim import LowLevelZeroOptimizer

    monkeypatch.setattr(streamed_update, "PIECE", 700)  # some weights together, some alone
    return monkeypatch, LowLevelZeroOptimizer


def trained(plugin: PluginName, precision: Precision, fraction: float = 1.0) -> tuple[list[float], list[torch.Tensor]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=65, **sizes))
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    settings = PluginSettings(plugin, precision, gradient_clipping=0.5, offload_fraction=fraction)
    session = Session(settings, model, groups, AdamSettings(lr=1e-2), lambda step: 1.0)
    figures = []
    for seed in range(3):
        ids = torch.randint(0, 65, (2, 12), generator=torch.Generator().manual_seed(seed))
        loss = session.forward(input_ids=ids, labels=ids, use_cache=False).loss
        session.backward(loss)
        figures += [float(loss.detach()), session.step().grad_norm]
    return figures, [p.detach().clone() for p in session.model.unwrap().parameters()]


@pytest.mark.parametrize(
    ("plugin", "precision", "fraction"),
    [("zero2", "bf16", 1.0), ("zero2", "fp16", 1.0), ("zero2_cpu", "bf16", 0.5), ("zero2", "fp32", 1.0)],
)
def test_it_is_the_stock_update_to_the_last_bit(
    zero: Any, stock_step: Any, plugin: PluginName, precision: Precision, fraction: float
) -> None:
    patch, optimizer = zero
    ours = trained(plugin, precision, fraction)
    patch.setattr(optimizer, "step", stock_step)
    stock = trained(plugin, precision)
    assert ours[0] == stock[0]
    assert max(ours[0][1::2]) > 0.5, "nothing was clipped"
    assert all(torch.equal(a, b) for a, b in zip(ours[1], stock[1], strict=True))


def test_the_first_parameters_lie_in_host_memory_until_their_share_is_reached() -> None:
    assert host_share([10, 10, 10, 10], 1.0) == [True] * 4
    assert host_share([10, 10, 10, 10], 0.5) == [True, True, False, False]
    assert host_share([10, 80, 10], 0.4) == [True, False, False]
    assert host_share([], 0.5) == []


def test_masters_that_need_not_lie_in_host_memory_go_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[torch.Tensor] = []
    monkeypatch.setattr("colossal_llama2.engine.streamed_update._move", lambda master, device: moved.append(master))
    groups = {0: [torch.zeros(6), torch.zeros(2)], 1: [torch.zeros(2)]}
    masters = [master for group in groups.values() for master in group]
    optimizer = SimpleNamespace(_master_param_groups_of_current_rank=groups)
    assert bring_to_device(optimizer, 0.6, torch.device("meta")) == (6, 4)
    assert [id(master) for master in moved] == [id(master) for master in masters[1:]]
