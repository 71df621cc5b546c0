"""The loss with float8's rounding beside that of bf16: a small random Llama, the same rows, the same steps.

    python benchmarks/float8_curve.py            on any machine: the rounding is emulated, the products are fp32's
    python benchmarks/float8_curve.py --steps 400 --text FILE    on the bytes of a text of one's own

The rows are a text's bytes, by default of this repository's own documentation. Two runs in bf16 that differ in the seed
of the initial weights show how far apart curves lie that differ in nothing that matters.

Results: `benchmarks/results/float8_curve.json` and `docs/float8_curve.png`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.engine import ranks
from colossal_llama2.engine.plugins import Float8, PluginSettings
from colossal_llama2.engine.session import AdamSettings, Session

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Settings:
    """Train three times and draw the losses."""

    steps: int = 150
    """Optimizer steps of each run."""
    hidden: int = 64
    """Width of the model; its MLP is twice as wide."""
    layers: int = 2
    """Decoder layers."""
    length: int = 64
    """Bytes of a row."""
    rows: int = 8
    """Rows a step."""
    lr: float = 3e-3
    """Learning rate, constant."""
    text: Path | None = None
    """File whose bytes are learned (default: docs/*.md)."""


def main(settings: Settings) -> int:
    """Train, write the losses and the figure, and print how far apart they are."""
    text = np.frombuffer(_text(settings.text), dtype=np.uint8).astype(np.int64)
    curves = {}
    for name, float8, seed in (("bf16", "no", 0), ("float8", "emulated", 0), ("bf16, another seed", "no", 1)):
        ranks.launch(seed=0)
        curves[name] = _curve(settings, text, float8, seed)  # type: ignore[arg-type]
        ranks.close()
    tail = max(1, settings.steps // 5)
    ends = {name: float(np.mean(losses[-tail:])) for name, losses in curves.items()}
    apart = {name: round(ends[name] - ends["bf16"], 4) for name in ends if name != "bf16"}
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
    content = {"machine": describe_machine(), "settings": asked, "mean_of_last": tail, "apart": apart, "curves": curves}
    target = ROOT / "benchmarks" / "results" / "float8_curve.json"
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _draw(curves, ROOT / "docs" / "float8_curve.png")
    for name, loss in ends.items():
        print(f"{name:<20} {loss:.4f} over the last {tail} steps")
    return 0


def _text(path: Path | None) -> bytes:
    if path is not None:
        return path.read_bytes()
    return b"".join(each.read_bytes() for each in sorted((ROOT / "docs").glob("*.md")))


def _curve(settings: Settings, text: Any, float8: Float8, seed: int) -> list[float]:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=settings.hidden,
        intermediate_size=2 * settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.hidden // 16,
    )
    model = LlamaForCausalLM(config)
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    plugin = PluginSettings("zero2", "bf16", float8=float8)
    session = Session(plugin, model, groups, AdamSettings(lr=settings.lr), lambda step: min(1.0, (step + 1) / 20))
    draw, losses = np.random.default_rng(0), []
    for _ in range(settings.steps):
        starts = draw.integers(0, len(text) - settings.length, settings.rows)
        ids = torch.from_numpy(np.stack([text[start : start + settings.length] for start in starts]))
        ids = ids.to(ranks.device())
        loss = session.forward(input_ids=ids, labels=ids, use_cache=False).loss
        session.backward(loss)
        session.step()
        losses.append(round(float(loss.detach()), 5))
    return losses


def _draw(curves: dict[str, list[float]], target: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6))
    for (name, losses), style in zip(curves.items(), ("-", "-", ":"), strict=True):
        axes.plot(range(1, len(losses) + 1), losses, style, label=name, linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a byte")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    cli.run(Settings, main)
