"""A model whose layers are compiled learns what it learns without, with documents, recomputation and every plugin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from colossal_llama2.errors import InputError
from colossal_llama2.model import document_attention
from colossal_llama2.model.compiled_layers import check_compile, compile_layers
from colossal_llama2.model.document_attention import Documents


@pytest.fixture(autouse=True)
def forget_compiled() -> Iterator[None]:
    """Begin with nothing compiled, and leave nothing compiled to other tests."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def tiny_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    document_attention.register()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=64, num_attention_heads=4, num_key_value_heads=2, **sizes)
    return LlamaForCausalLM._from_config(config, attn_implementation=document_attention.NAME).train()


def gradients(model: Any, lengths: list[int]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one row of documents."""
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.randint(64, (1, sum(lengths)), generator=generator)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    model.zero_grad()
    documents = Documents.of(bounds, bounds)
    logits = model(ids, position_ids=positions, documents=documents, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.long  # compiles
@pytest.mark.parametrize("recomputes", [False, True])
def test_compiled_layers_learn_the_same_and_are_not_compiled_for_every_batch(recomputes: bool) -> None:
    rows = [[5, 12], [3, 4, 10], [17], [2, 6, 3, 6]]
    plain = tiny_llama()
    if recomputes:
        plain.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    expected = [gradients(plain, lengths) for lengths in rows]
    model = tiny_llama()
    if recomputes:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    names = list(model.state_dict())
    assert compile_layers(model, backend="aot_eager") == 2
    assert list(model.state_dict()) == names
    graphs = []
    for lengths, (loss, wanted) in zip(rows, expected, strict=True):
        actual, found = gradients(model, lengths)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        assert actual == pytest.approx(loss, rel=1e-5)
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert graphs[0] > 0, "nothing was compiled"
    assert graphs[-1] == graphs[1] <= 2 * graphs[0], "other documents made other graphs"


@pytest.mark.parametrize("plugin", ["gemini", "gemini_auto"])
def test_a_plugin_that_must_see_weights_is_refused(plugin: str) -> None:
    with pytest.raises(InputError, match="--compile with --plugin gemini"):
        check_compile(plugin)


@pytest.mark.parametrize("plugin", ["3d"])
def test_a_plugin_that_was_not_tried_is_refused(plugin: str) -> None:
    with pytest.raises(InputError, match="not tried yet"):
        check_compile(plugin)


def test_a_machine_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match=r"C\+\+ compiler"):
        check_compile("zero2")
