"""Does compiling the decoder layers pay on this machine, and how long does it take?

    python benchmarks/compiled_layers.py

A toy Llama over rows of documents, forward and backward, as it is and with `compile_layers`, by turns in one process;
the first step of the compiled one, which compiles, is told apart. Losses and gradient norms must be equal.

Predicted: at toy size on a CPU the products are most of a step, and the element-wise work between them (norms, rotary
embedding, SwiGLU) some tenths of it, of which compiling saves perhaps half: 0.8 to 0.95 of the time.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.model import document_attention
from colossal_llama2.model.compiled_layers import compile_layers
from colossal_llama2.model.document_attention import Documents

LENGTHS = (60, 100, 200, 152)


@dataclass(frozen=True)
class Settings:
    """Measure a step with and without compiled layers."""

    layers: int = 4
    """Decoder layers."""
    hidden_size: int = 256
    """Width of the model."""
    backend: Literal["inductor", "aot_eager"] = "inductor"
    """What compiles."""
    recomputes: bool = False
    """Recompute activations."""
    repeats: int = 5
    """Steps measured of each, by turns."""
    output: Path = Path(__file__).resolve().parent / "results" / "compiled_layers.json"
    """File to write the result to."""


def main(settings: Settings) -> None:
    """Measure both and write what came out."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {"plain": _model(settings).to(device), "compiled": _model(settings).to(device)}
    compile_layers(models["compiled"], settings.backend)
    began = time.perf_counter()
    figures = {name: _step(model) for name, model in models.items()}
    compiling = time.perf_counter() - began
    torch.testing.assert_close(figures["compiled"][:2], figures["plain"][:2], rtol=1e-4, atol=1e-5)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(settings.repeats):
        for name, model in models.items():
            times[name].append(_step(model)[2])
    medians = {name: statistics.median(values) for name, values in times.items()}
    content = {
        "machine": describe_machine(),
        "threads": torch.get_num_threads(),
        "settings": {name: getattr(settings, name) for name in ("layers", "hidden_size", "backend", "recomputes")},
        "first_steps_seconds": round(compiling, 1),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
        "processor_seconds": {name: round(value, 4) for name, value in medians.items()},
        "of_plain": round(medians["compiled"] / medians["plain"], 3),
    }
    settings.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    cli.say(json.dumps({name: value for name, value in content.items() if name != "machine"}))


def _model(settings: Settings) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    document_attention.register()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.hidden_size * 11 // 4,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.hidden_size // 32,
        num_key_value_heads=settings.hidden_size // 64,
    )
    model: Any = LlamaForCausalLM._from_config(config, attn_implementation=document_attention.NAME).train()
    if settings.recomputes:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _step(model: Any) -> tuple[float, float, float]:
    """Return loss, gradient norm, and the processor's seconds of forward and backward."""
    ids = torch.randint(512, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1)).to(model.device)
    bounds = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None].to(model.device)
    model.zero_grad()
    began = time.process_time()
    documents = Documents.of(bounds, bounds.to(model.device))
    logits = model(ids, position_ids=positions, documents=documents, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])
    loss.backward()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.process_time() - began
    norm = torch.nn.utils.get_total_norm(parameter.grad for parameter in model.parameters())
    return loss.item(), float(norm), seconds


if __name__ == "__main__":
    cli.run(Settings, main)
