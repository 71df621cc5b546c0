"""Do Liger-Kernel's Triton kernels compute what plain torch does?

    python benchmarks/liger_kernels.py                       # on CUDA
    TRITON_INTERPRET=1 python benchmarks/liger_kernels.py    # on a CPU: Triton interprets the same kernels

Asks for triton and liger-kernel. Loss: sum, gradients of hidden states and head, against ours. Models: for every type
that `--fused_kernels` is proved for, logits and the gradients of all weights of a tiny model with and without the
kernels. The interpreter runs the kernels' arithmetic, not their machine code: what it says of a GPU is that the
formulas and the places of the numbers are right, and nothing of speed, nor of what a compiler makes of them. Triton
3.9.0's interpreter leaves arguments that are Python floats as they are, where the compiler makes them scalars of fp32,
and RMSNorm's kernel then asks a float for `.to`: here they are made the same scalars first. And it has no CUDA device
library, so that its rsqrt stands for that library's. Sums of two numbers in bf16 it gets wrong (numpy has no such
type), and the rotary embedding's kernel makes some: there models are compared in fp16, on CUDA in bf16.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.engine.liger_loss import liger_losses_and_gradients
from colossal_llama2.engine.summed_loss import Wanted, losses_and_gradients
from colossal_llama2.model import document_attention
from colossal_llama2.model.document_attention import Documents
from colossal_llama2.model.fused_kernels import KINDS, PROVED, ROTARY, put_in

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference allowed, as a share of the largest number compared with."""


@dataclass(frozen=True)
class Settings:
    """Compare Liger's kernels with plain torch."""

    output: Path = Path(__file__).resolve().parent / "results" / "liger_kernels.json"
    """File to write the result to."""


def main(settings: Settings) -> None:
    """Compare everything and write the largest differences found; exit 1 if one is too large."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if _INTERPRETED:
        _complete_the_interpreter()
    found: dict[str, dict[str, float]] = {}
    for dtype, tolerance in TOLERANCES.items():
        name = str(dtype).removeprefix("torch.")
        found[f"loss, {name}"] = _compare_losses(dtype, device)
        for model_type in () if _INTERPRETED and dtype == torch.bfloat16 else PROVED:
            found[f"{model_type}, {name}"] = _compare_models(model_type, dtype, device)
        for what, shares in found.items():
            if what.endswith(name):
                cli.say(f"{what}: " + ", ".join(f"{part} {share:.1e}" for part, share in shares.items()))
                if not all(share <= tolerance for share in shares.values()):  # nor NaN
                    raise SystemExit(f"{what}: differs by more than {tolerance}")
    content = {
        "machine": describe_machine(),
        "liger_kernel": version("liger_kernel"),
        "triton": version("triton"),
        "interpreted": _INTERPRETED,
        "largest_difference_as_a_share_of_the_largest_number": found,
        "allowed": {str(dtype).removeprefix("torch."): share for dtype, share in TOLERANCES.items()},
    }
    settings.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _complete_the_interpreter() -> None:
    import numpy as np
    from liger_kernel.ops import rms_norm
    from triton import language as tl
    from triton.runtime import interpreter

    stock = interpreter._implicit_cvt

    def convert(argument: Any) -> Any:
        if not isinstance(argument, float):
            return stock(argument)
        handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    interpreter._implicit_cvt = convert

    def rsqrt(value: Any) -> Any:
        return tl.rsqrt(value)  # looked up only now: the interpreter puts its own there while a kernel runs

    rms_norm.rsqrt = rsqrt


def _compare_losses(dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    torch.manual_seed(0)
    hidden, weight = (torch.randn(rows, 16, device=device).to(dtype) for rows in (23, 61))
    targets = torch.randint(61, (23,), device=device)
    wanted = Wanted(of_hidden=True, of_weight=True)
    with torch.no_grad():
        theirs = liger_losses_and_gradients(hidden, weight, targets, wanted)
        ours = losses_and_gradients(hidden, weight, targets, wanted)
    names = ("losses", "of_hidden", "of_weight")
    return {name: _share(getattr(theirs, name), getattr(ours, name)) for name in names}


def _compare_models(model_type: str, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    plain, plain_gradients = _logits_and_gradients(_tiny(model_type).to(device, dtype))
    fused_model = _tiny(model_type).to(device, dtype)
    module = sys.modules[type(fused_model).__module__]
    rotate = getattr(module, ROTARY)
    put_in(fused_model, list(KINDS))
    assert getattr(module, ROTARY) is not rotate
    assert "forward" in vars(fused_model.model.norm), "nothing was put in"
    assert "forward" not in vars(_tiny(model_type).model.norm)
    fused, fused_gradients = _logits_and_gradients(fused_model)
    setattr(module, ROTARY, rotate)  # or the next plain model would not be plain
    assert plain_gradients.keys() == fused_gradients.keys()
    of_weights = (_share(fused_gradients[name], value) for name, value in plain_gradients.items())
    return {"logits": _share(fused, plain), "gradients": max(of_weights)}


def _tiny(model_type: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    document_attention.register()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=document_attention.NAME).train()


def _logits_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    device = model.device
    ids = torch.randint(64, (1, 11), generator=generator).to(device)
    bounds = torch.tensor([0, 4, 11], dtype=torch.int32)
    positions = torch.cat([torch.arange(4), torch.arange(7)])[None].to(device)
    documents = Documents.of(bounds, bounds.to(device))
    logits = model(ids, position_ids=positions, documents=documents, use_cache=False).logits.float()
    factors = torch.randn(logits.shape, generator=generator).to(device)
    (logits * factors).sum().backward()
    return logits.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def _share(actual: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((actual.float() - wanted.float()).abs().max() / wanted.float().abs().max())


if __name__ == "__main__":
    cli.run(Settings, main)
