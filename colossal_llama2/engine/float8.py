"""Decoder layers' matmuls in float8, through torchao: half the bytes of bf16 into the tensor cores, twice the rate.

A `Float8Linear` is a linear with the same parameters under the same names. In each of its three products (output,
input's gradient, weight's gradient) both operands are scaled to float8's range by their own largest value, one scale a
tensor, and rounded (e4m3, gradients e5m2); the product comes out in half precision. Scales are computed anew each time,
so there is no state: checkpoints and finished models are plain, and a resume is exact.

Why torchao and not ColossalAI's ``use_fp8``: that one replaces every call of ``F.linear``, the head's and those of
frozen weights among them; it goes back to half precision without a word where tokens are no multiple of 16; it takes
the first of what ``torch._scaled_mm`` returns, which was a pair once and is the product itself today
(quantization/fp8.py:800, read, not run); and it cannot be tried without the card. Its ``fp8_communication`` is another
thing: gradients and weights on their way between ranks.
"""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from colossal_llama2 import cli
from colossal_llama2.errors import InputError

if TYPE_CHECKING:
    from colossal_llama2.engine.plugins import PluginSettings

_CAPABILITY: Final = (8, 9)  # Ada; Hopper is 9.0
_MULTIPLE: Final = 16  # of both dimensions: what torch._scaled_mm asks for
_IN_LAYER: Final = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\.")


def check_float8(settings: PluginSettings) -> None:
    """Refuse float8 where it cannot be had.

    Raises:
        InputError: naming the plugin, the precision, the card or the package that stands in the way.
    """
    if settings.float8 == "no":
        return
    if settings.plugin in ("gemini", "gemini_auto"):
        raise InputError(
            f"--float8 with --plugin {settings.plugin}, which takes a weight away between torchao's two uses of it",
            remedy="pass --plugin zero2, ddp or 3d",
        )
    if settings.tp > 1:
        raise InputError(
            f"--float8 with --tp {settings.tp}: ColossalAI's divided linears compute by themselves",
            remedy="leave --tp at 1; --pp and --sp go together with it",
        )
    if settings.precision == "fp32":
        raise InputError("--float8 with --mixed_precision fp32", remedy="pass --mixed_precision bf16")
    if importlib.util.find_spec("torchao") is None:
        raise InputError("--float8 needs torchao, which is not installed", remedy="pip install torchao")
    if settings.float8 == "yes":
        _check_card()


def _check_card() -> None:
    remedy = "leave it out; --emulate_float8 rounds like it anywhere, and is slow"
    if not torch.cuda.is_available():
        raise InputError("--float8 needs a card with float8 products, and there is no CUDA here", remedy=remedy)
    capability = torch.cuda.get_device_capability()
    if capability < _CAPABILITY:
        raise InputError(
            f"--float8 needs compute capability {_CAPABILITY[0]}.{_CAPABILITY[1]} (Ada, Hopper or newer), and "
            f"{torch.cuda.get_device_name()} has {capability[0]}.{capability[1]}",
            remedy=remedy,
        )


def use_float8(model: nn.Module, emulated: bool) -> list[str]:
    """Turn the trained linears of decoder layers into float8 ones, before a plugin takes the model.

    Head and embedding stay: the loss is most sensitive to the head's rounding. Frozen linears stay, because torchao
    computes the gradient of every weight, wanted or not.

    Args:
        model: a transformers model; its parameters stay the same objects.
        emulated: round to float8 and multiply in fp32, on whatever machine.

    Returns:
        Names of the linears that were turned.

    Raises:
        InputError: there is none that can be.
    """
    candidates = [(name, module) for name, module in model.named_modules() if _can_be(name, module)]
    fitting = {name for name, module in candidates if not any(n % _MULTIPLE for n in module.weight.shape)}
    if not fitting:
        raise InputError(
            f"--float8 finds no linear of a decoder layer that is trained and whose dimensions are multiples of "
            f"{_MULTIPLE}",
            remedy="leave it out; with frozen layers or LoRA it has nothing to speed up",
        )
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    # The weight's gradient is a sum over tokens, and a micro-batch need not have a multiple of 16: padded then.
    config = Float8LinearConfig(emulate=emulated, pad_inner_dim=not emulated)
    convert_to_float8_training(model, module_filter_fn=lambda module, name: name in fitting, config=config)
    left = [name for name, _ in candidates if name not in fitting]
    cli.say(
        f"float8{' (emulated)' if emulated else ''}: {len(fitting)} linears of decoder layers"
        + (f"; not {', '.join(left)}, whose dimensions are no multiples of {_MULTIPLE}" if left else "")
    )
    return sorted(fitting)


def _can_be(name: str, module: Any) -> bool:
    return type(module) is nn.Linear and bool(_IN_LAYER.search(name)) and bool(module.weight.requires_grad)
