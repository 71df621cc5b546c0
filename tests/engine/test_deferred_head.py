"""A model whose head waits for the loss trains as one that makes its logits, and never makes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from colossal_llama2.engine import chunked_loss, deferred_head, ranks
from colossal_llama2.engine.deferred_head import can_defer
from colossal_llama2.engine.plugins import PluginName, PluginSettings
from colossal_llama2.engine.session import AdamSettings, Objective, Session
from colossal_llama2.train.losses import next_token_loss_sum

VOCABULARY, STEPS = 64, 4


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    """Make a process group of this process alone."""
    ranks.launch(seed=0)
    yield
    ranks.close()


def tiny_llama(tied: bool, **more: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=tied, **sizes, **more))


def trained(plugin: PluginName, precision: Any, defers: bool, tied: bool) -> tuple[list[float], list[float], int]:
    """Return losses, gradient norms, and the width of what stood in the place of logits."""
    model = tiny_llama(tied)
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    adam = AdamSettings(lr=1e-2, eps=1e-4)
    session = Session(
        PluginSettings(plugin, precision, zero=0 if plugin == "3d" else 1), model, groups, adam, lambda step: 1.0
    )
    if defers:
        session.defer_head()
    widths = set()

    def loss_sum(output: Any, ids: torch.Tensor, cross_entropies: Any) -> torch.Tensor:
        widths.add(output.logits.shape[-1])
        labels = ids.clone()
        labels[:, ::5] = -100
        return next_token_loss_sum(output.logits, labels, cross_entropies)

    objective: Objective[torch.Tensor] = Objective(lambda ids: {"input_ids": ids, "use_cache": False}, loss_sum)
    generator = torch.Generator().manual_seed(1)
    micro_batches = [torch.randint(VOCABULARY, (2, 17), generator=generator) for _ in range(2)]
    losses, norms = [], []
    for _ in range(STEPS):
        losses.append(float(session.learn(micro_batches, objective, 0.02)))
        norms.append(session.step().grad_norm)
    [width] = widths
    return losses, norms, width


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("plugin", "precision"),
    [("zero2", "fp32"), ("zero2", "bf16"), ("ddp", "fp32"), ("ddp", "bf16"), ("gemini", "bf16"), ("3d", "fp32")],
)
def test_trains_as_with_logits(plugin: PluginName, precision: str, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, norms, width = trained(plugin, precision, False, tied)
    assert width == VOCABULARY
    few = 5 * 4 * VOCABULARY  # five tokens at a time
    monkeypatch.setattr(deferred_head, "MOST_LOGITS_BYTES", few)
    monkeypatch.setattr(chunked_loss.linear_cross_entropies, "__defaults__", (chunked_loss.HeadPlace(), few))
    deferred, deferred_norms, width = trained(plugin, precision, True, tied)
    assert width == 32
    rtol = 1e-5 if precision == "fp32" else 2e-2
    assert losses[0] != pytest.approx(losses[-1], rel=0.02), "nothing was learned"
    assert deferred == pytest.approx(losses, rel=rtol)
    assert deferred_norms == pytest.approx(norms, rel=5 * rtol)


def test_only_heads_that_do_nothing_else_wait() -> None:
    assert can_defer(tiny_llama(tied=False))
    assert not can_defer(tiny_llama(tied=False, logit_scale=0.5))
    assert not can_defer(tiny_llama(tied=False, final_logit_softcapping=30.0))
    model = tiny_llama(tied=False)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
    assert not can_defer(model)
    model = tiny_llama(tied=False)
    model.config.model_type = "some_other"
    assert not can_defer(model)
