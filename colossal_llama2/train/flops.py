"""How much arithmetic a step is, and how much the machine could do: the two halves of model FLOP utilisation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

# Dense matmul peaks in FLOP/s without sparsity, from NVIDIA's data sheets: (half precision, fp32 with TF32 off). The
# first name that stands in the card's own is taken, so the special form of a card comes before its family.
_PEAKS = {
    "H200 NVL": (835e12, 60e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "H800": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "A800": (312e12, 19.5e12),
}
_MEASURED_SIZE = 1024
_MEASURED_SIZE_ON_CARDS = 8192  # smaller ones do not fill a large card
_MEASURED_SECONDS = 0.3


@dataclass(frozen=True)
class StepFlops:
    """Arithmetic of a model's training step, recomputation not counted.

    A matmul of n weights costs 2n forward per token, 2n for the gradient of its input, 2n for that of its weights when
    they are trained. Attention of a document of m tokens costs 2 m^2 d a layer forward (scores and values, the causal
    half counted once) and twice that backward; under a window of w < m tokens, m^2 - (m - w)^2 stands for m^2.

    Attributes:
        matmul_weights: weights that are multiplied with every token, the output head among them.
        trained_weights: those of them that are trained.
        attention_width: layers times heads times head dimension, of the layers that see whole documents.
        window_width: the same of the layers that see a window.
        window: its length in tokens.
    """

    matmul_weights: int
    trained_weights: int
    attention_width: int
    window_width: int = 0
    window: int = 0

    def of(self, num_tokens: int, document_lengths: Sequence[int]) -> float:
        """Floating-point operations of training on `num_tokens` tokens in documents of the given lengths."""
        matmul = num_tokens * (4.0 * self.matmul_weights + 2.0 * self.trained_weights)
        attention = self.attention_width * float(sum(length * length for length in document_lengths))
        for length in document_lengths if self.window_width else ():
            attention += self.window_width * float(length**2 - max(length - self.window, 0) ** 2)
        return matmul + 6.0 * attention


def step_flops(model: nn.Module) -> StepFlops:
    """Count a transformers causal language model. The input embedding is a lookup and costs nothing."""
    config = model.config
    heads = getattr(config, "num_attention_heads", 0)
    head_dim = getattr(config, "head_dim", None) or (getattr(config, "hidden_size", 0) // max(heads, 1))
    layers = int(getattr(config, "num_hidden_layers", 0))
    window = int(getattr(config, "sliding_window", None) or 0)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * layers
    width, windowed = int(heads) * int(head_dim), kinds.count("sliding_attention") if window else 0
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return StepFlops(
        matmul_weights=sum(weight.numel() for weight in linear),
        trained_weights=sum(weight.numel() for weight in linear if weight.requires_grad),
        attention_width=(layers - windowed) * width,
        window_width=windowed * width,
        window=window,
    )


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Return the device's peak matmul rate in FLOP/s, and where the figure comes from."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for card, (half, full) in _PEAKS.items():
            if card in name:
                return (full if dtype == torch.float32 else half), f"data sheet of the {card}"
    return measured_peak(device, dtype), "matmul measured at start"


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Time products of two square matrices for a moment; return the rate of the fastest in FLOP/s."""
    size = _MEASURED_SIZE_ON_CARDS if device.type == "cuda" else _MEASURED_SIZE
    # no random numbers: a resumed run has its random state back already, and dropout goes on from there
    left = torch.full((size, size), 0.5, device=device, dtype=dtype)
    right = torch.full((size, size), 0.25, device=device, dtype=dtype)
    best = float("inf")
    end = time.perf_counter() + _MEASURED_SECONDS
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
