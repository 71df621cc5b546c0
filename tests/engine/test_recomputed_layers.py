"""Layers recomputed one by one: which, with the same numbers under every plugin, and with the memory planned."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch

from colossal_llama2.engine.activation_budget import fewest_recomputed, within_budget
from colossal_llama2.engine.gathering import whole_weights
from colossal_llama2.engine.memory_plan import GIB, predict
from colossal_llama2.engine.moments import activation_peak
from colossal_llama2.engine.plan_request import Layout, PlanRequest, Training, layers_of_stages, recomputed_layers
from colossal_llama2.engine.plugins import PluginName, PluginSettings, Precision
from colossal_llama2.engine.session import AdamSettings, Session
from colossal_llama2.errors import InputError
from colossal_llama2.model.model_shape import ModelShape
from colossal_llama2.model.pretrained import recomputable_layers, recompute_activations

REQUEST = PlanRequest(training=Training(max_length=64))


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("num_layers", [4, 7, 32])
def test_as_many_as_were_asked_for_the_first_of_every_stage(num_layers: int, stages: int) -> None:
    for wanted in range(num_layers + 1):
        chosen = recomputed_layers(wanted, num_layers, stages)
        assert sum(map(len, chosen)) == wanted
        stage_layers = layers_of_stages(num_layers, stages)
        for own, layers in zip(chosen, stage_layers, strict=True):
            assert own.start == layers.start
            assert own.stop <= layers.stop
            assert abs(len(own) - wanted * len(layers) / num_layers) < 1


def trained(
    plugin: PluginName, precision: Precision, layers: int | None
) -> tuple[list[float], list[torch.Tensor], int]:
    """Train two steps; return losses and gradient norms, the weights, and how often a decoder layer was run."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=64, attention_dropout=0.1, **sizes))
    if layers:
        (chosen,) = recomputed_layers(layers, 3, 1)
        recompute_activations(model, chosen)
    runs = [0]
    for layer in recomputable_layers(model):
        layer.input_layernorm.register_forward_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    settings = PluginSettings(plugin, precision, zero=1 if plugin != "3d" else 0)
    session = Session(settings, model, groups, AdamSettings(lr=1e-2), lambda step: 1.0)
    figures = []
    for seed in range(2):
        torch.manual_seed(seed)
        ids = torch.arange(24).reshape(2, 12) % (60 + seed)
        loss = session.forward(input_ids=ids, labels=ids, use_cache=False).loss
        session.backward(loss)
        figures += [float(loss.detach()), session.step().grad_norm]
    weights = [weight.gather().clone() for weight in whole_weights(session)]
    return figures, weights, runs[0]


@pytest.mark.parametrize(
    ("plugin", "precision"),
    [
        ("zero2", "bf16"),
        ("zero2_cpu", "bf16"),
        ("ddp", "fp32"),
        ("gemini", "bf16"),
        ("gemini_auto", "bf16"),
        ("3d", "fp32"),
    ],
)
def test_losses_and_gradients_are_exactly_the_same(one_rank: None, plugin: PluginName, precision: Precision) -> None:
    plain = trained(plugin, precision, None)
    some = trained(plugin, precision, 2)
    assert some[0] == plain[0]
    assert all(torch.equal(a, b) for a, b in zip(some[1], plain[1], strict=True))
    assert some[2] == plain[2] + 2 * 2, "each of them once more a step"


def test_activations_fall_layer_by_layer_and_the_first_layers_cost_least(tiny_shape: ModelShape) -> None:
    wide = PlanRequest(training=Training(max_length=64, micro_batch_size=8))
    peaks = [
        activation_peak(tiny_shape, replace(wide, training=replace(wide.training, checkpoint_layers=layers)))
        for layers in range(tiny_shape.layers + 1)
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > peaks[-1]
    everything = replace(wide, training=replace(wide.training, use_grad_checkpoint=True))
    assert peaks[-1] == activation_peak(tiny_shape, everything)
    assert predict(tiny_shape, everything).moments == tuple(
        predict(tiny_shape, replace(wide, training=replace(wide.training, checkpoint_layers=2))).moments
    )


def test_a_budget_takes_the_fewest_layers(tiny_shape: ModelShape) -> None:
    peaks = {
        layers: activation_peak(
            tiny_shape, replace(REQUEST, training=replace(REQUEST.training, checkpoint_layers=layers))
        )
        for layers in range(3)
    }
    for layers, peak in peaks.items():
        chosen = within_budget(tiny_shape, REQUEST, peak / GIB).training.checkpoint_layers
        assert peaks[chosen] <= peak
        assert all(peaks[fewer] > peak for fewer in range(chosen))
        assert chosen <= layers
    assert within_budget(tiny_shape, REQUEST, None) is REQUEST
    with pytest.raises(InputError, match="every layer recomputed"):
        within_budget(tiny_shape, REQUEST, 1e-9)


def test_every_stage_of_a_pipeline_recomputes_its_share(tiny_shape: ModelShape) -> None:
    layout = Layout("3d", 2, pp=2, zero=0)
    training = Training("fp32", max_length=64, accumulation_steps=2, checkpoint_layers=1)
    asked = fewest_recomputed(tiny_shape, PlanRequest(layout, training), lambda request: True)
    assert asked.training.checkpoint_layers == 0
    assert set(chain.from_iterable(recomputed_layers(1, 2, 2))) == {0}


def test_auto_needs_a_device(tiny_shape: ModelShape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="none here"):
        within_budget(tiny_shape, REQUEST, "auto")


@pytest.mark.parametrize("layers", [pytest.param(1, marks=pytest.mark.long), 3])
def test_a_step_with_some_layers_recomputed_takes_what_was_planned(
    one_rank: None, training_memory: Any, layers: int
) -> None:
    case = training_memory.Case(
        rows=4, length=48, hidden=48, intermediate=128, layers=4, heads=3, vocab=128, checkpoint_layers=layers
    )
    measured = training_memory.measure(case)["peak"]
    shape = training_memory.case_shape(case)
    assert predict(shape, case.request).allocated == pytest.approx(measured, rel=0.15)
    plain = replace(case.request.training, checkpoint_layers=0)
    assert predict(shape, replace(case.request, training=plain)).allocated > 1.03 * measured
