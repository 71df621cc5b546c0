"""Model folders whose weights are stored in few bits: told from others, loaded, refused where they cannot serve.

``quantization_config`` in config.json is transformers' own mark. Two formats are written here: compressed-tensors'
(``pack-quantized``: int8 and int4-gptq) and bitsandbytes' (nf4); any other that transformers knows is let through to
it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from colossal_llama2.errors import InputError
from colossal_llama2.model.weights import read_json

COMPRESSED_TENSORS: Final = "compressed-tensors"
BITSANDBYTES: Final = "bitsandbytes"
RECORD_FILE: Final = "quantization.json"
_CONFIG_FILE: Final = "config.json"
_CONFIG_KEY: Final = "quantization_config"
# As pyproject.toml has them in the extra `quantize`.
_PIP_NAMES: Final = {COMPRESSED_TENSORS: "compressed-tensors>=0.20,<0.22", BITSANDBYTES: "bitsandbytes>=0.50,<0.52"}


def stored_format(model_dir: Path) -> str | None:
    """Return the quantised format of a model folder as transformers names it; None for plain numbers."""
    path = model_dir / _CONFIG_FILE
    config = read_json(path).get(_CONFIG_KEY) if path.is_file() else None
    if config is None:
        return None
    return str(config.get("quant_method")) if isinstance(config, dict) else "unknown"


def refuse_quantized(model_dir: Path, purpose: str) -> None:
    """Refuse a quantised folder where numbers in full precision are needed.

    Args:
        model_dir: the folder.
        purpose: what it cannot do, as in "cannot be trained".

    Raises:
        InputError: it is quantised.
    """
    found = stored_format(model_dir)
    if found is not None:
        raise InputError(
            f"is quantised ({found}) and {purpose}",
            path=model_dir,
            remedy="name the model that it was made of, and quantise what comes out",
        )


def require_library(name: str, what: str) -> None:
    """Refuse to go on without a library.

    Args:
        name: `COMPRESSED_TENSORS` or `BITSANDBYTES`.
        what: what needs it.

    Raises:
        InputError: naming the command that installs it.
    """
    if importlib.util.find_spec(name.replace("-", "_")) is None:
        raise InputError(f"{what} needs {name}, which is not installed", remedy=f"pip install '{_PIP_NAMES[name]}'")


def loading_options(model_dir: Path, device: torch.device, adapter_dir: Path | None = None) -> dict[str, Any]:
    """Return what `from_pretrained` must be told for a folder, and refuse what would fail in the middle.

    Args:
        model_dir: a model folder, quantised or not.
        device: where it shall lie.
        adapter_dir: an adapter that shall be put on it.

    Raises:
        InputError: the library of its format is missing, or an adapter shall go on rounded weights.
    """
    found = stored_format(model_dir)
    if found is None:
        return {}
    if adapter_dir is not None:
        raise InputError(
            f"is quantised ({found}), and {adapter_dir} was trained on other numbers than it holds",
            path=model_dir,
            remedy="merge the adapter into the unquantised model with tools/merge_lora.py and quantise the result",
        )
    if found in _PIP_NAMES:
        require_library(found, f"{model_dir}, stored as {found},")
    if found == COMPRESSED_TENSORS:
        _hide_bars()
    return {"device_map": {"": device}} if found == BITSANDBYTES else {}


def settle(model: Any, device: torch.device) -> None:
    """Settle how a model in compressed-tensors' format computes; one of another format is left as it is.

    Left alone it would unpack all its weights at the first token and keep them so: 13 GB for 7B. On a GPU each matrix
    stays packed, is unpacked while it is multiplied and dropped again, which costs time for every token and leaves the
    memory at what the file takes. On the CPU memory is rarely short and time is, so all is unpacked, and at once: not
    while the first answer is waited for.
    """
    if getattr(model, "ct_decompress_hook", None) is None:
        return
    if device.type == "cpu":
        _unpack_for_good(model)
    else:
        stay_packed(model)


def stay_packed(model: Any) -> int:
    """Let a model in compressed-tensors' format compute from packed weights; return how many matrices stay packed."""
    packed = _take_over(model)
    for module in packed:
        module.forward = partial(_multiply, module, _unpacker(module.quantization_scheme.weights))
    return len(packed)


def _unpack_for_good(model: Any) -> None:
    """Make every packed layer a plain linear layer; the library's own way leaves caches that slow each look-up."""
    from compressed_tensors.compressors.base import decompress_module

    for module in _take_over(model):
        decompress_module(module, leave_decompressed=False)


def _take_over(model: Any) -> list[Any]:
    """Remove what would unpack the model at the first token, and return its packed layers."""
    model.ct_decompress_hook.remove()
    del model.ct_decompress_hook
    return [module for module in model.modules() if hasattr(module, "weight_packed")]


def _hide_bars() -> None:
    """Keep compressed-tensors' progress bars, one for each step of loading, off the screen."""
    for name in ("compressors.model_compressors.model_compressor", "quantization.lifecycle.apply"):
        module = importlib.import_module(f"compressed_tensors.{name}")
        if hasattr(module, "tqdm"):  # a version without it has no bars to hide
            module.tqdm = _without_a_bar  # type: ignore[attr-defined]


def _without_a_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items


def _unpacker(scheme: Any) -> Callable[[nn.Module], torch.Tensor]:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    def unpack(module: Any) -> torch.Tensor:
        shape = (module.out_features, module.in_features)
        packed: torch.Tensor = module.weight_packed
        if scheme.num_bits == 8:  # four bytes an int32, each 128 too high
            numbers = (packed.view(torch.uint8)[:, : shape[1]] ^ 128).view(torch.int8)
        else:
            numbers = unpack_from_int32(packed, scheme.num_bits, torch.Size(shape))
        scale: torch.Tensor = module.weight_scale
        groups = numbers.to(scale.dtype).unflatten(1, (scale.shape[1], -1))
        return groups.mul_(scale.unsqueeze(-1)).flatten(1)

    return unpack


def _multiply(module: Any, unpack: Callable[[nn.Module], torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    return F.linear(inputs, unpack(module), module.bias)
