"""An adapter folder: what peft writes and reads, and which base it was trained on.

adapter_config.json          peft's
adapter_model.safetensors    peft's: lora_A and lora_B of every target; embedding and head where they were trained
base_model.json              fingerprint of the base's weights, so that it cannot be put on another one unseen
the base's tokenizer files
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from colossal_llama2.errors import InputError
from colossal_llama2.model.embedding_names import SCORE_HEAD
from colossal_llama2.model.expanding import write_json
from colossal_llama2.model.lora import LoraPlan, peft_key, trained_parameters
from colossal_llama2.model.safetensors_stream import map_tensor, read_header
from colossal_llama2.model.weights import find_weights, read_json
from colossal_llama2.tokenizer.folder import copy_tokenizer_files

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
BASE_FILE: Final = "base_model.json"
_SAMPLES: Final = 4
_SAMPLE_BYTES: Final = 256
_UNSUPPORTED: Final = {
    "use_dora": "DoRA",
    "rank_pattern": "another rank for some layers",
    "alpha_pattern": "another alpha for some layers",
    "fan_in_fan_out": "transposed weights",
    "modules_to_save": "copies of whole modules",
    "lora_bias": "biases",
}
_CHANGE_THE_BASE: Final = ("pissa", "olora", "corda", "loftq")


def is_adapter(folder: Path) -> bool:
    """Tell an adapter folder from a model folder."""
    return (folder / CONFIG_FILE).is_file()


def write_small_files(folder: Path, config: dict[str, Any], base_model_dir: Path, base_fingerprint: str) -> None:
    """Write everything of an adapter folder but the weights."""
    write_json(folder / CONFIG_FILE, config)
    write_json(folder / BASE_FILE, {"fingerprint": base_fingerprint})
    copy_tokenizer_files(base_model_dir, folder)


def read_config(adapter_dir: Path) -> dict[str, Any]:
    """Read ``adapter_config.json``.

    Raises:
        InputError: it is missing, or is not plain LoRA.
    """
    path = adapter_dir / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"holds no {CONFIG_FILE}", path=adapter_dir, remedy="give a folder saved by peft or train.py")
    config = read_json(path)
    kind = config.get("peft_type")
    found = [what for name, what in _UNSUPPORTED.items() if config.get(name)]
    if config.get("modules_to_save") == [SCORE_HEAD]:  # an adapter that scores, saved by us or by peft
        found.remove(_UNSUPPORTED["modules_to_save"])
    if config.get("bias", "none") != "none":
        found.append("biases")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_CHANGE_THE_BASE):
        found.append(f"{start}, which changes the base")
    if kind != "LORA" or found:
        raise InputError(
            f"is {kind} with {', '.join(found)}" if found else f"is {kind}, not LoRA",
            path=path,
            remedy="merge it with peft's merge_and_unload instead",
        )
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), int | float) or config[name] <= 0:
            raise InputError(f"has {name} {config.get(name)!r}", path=path, remedy="give a folder saved by peft")
    return config


def stored_shapes(adapter_dir: Path) -> dict[str, tuple[int, ...]]:
    """Map the names in an adapter's weight file to their shapes.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    path = adapter_dir / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"holds no {WEIGHTS_FILE}", path=adapter_dir, remedy="save it again as safetensors")
    return {tensor.name: tensor.shape for tensor in read_header(path)[0]}


def map_tensors(adapter_dir: Path) -> dict[str, torch.Tensor]:
    """Map an adapter's tensors into memory, by name."""
    return {tensor.name: map_tensor(tensor) for tensor in read_header(adapter_dir / WEIGHTS_FILE)[0]}


def check_continues(adapter_dir: Path, plan: LoraPlan, base_model_dir: Path) -> None:
    """Refuse an adapter that is not of the shape that this run trains, lacks a tensor, or was made on another base.

    Raises:
        InputError: naming what differs and the flags that fit.
    """
    config, stored = read_config(adapter_dir), stored_shapes(adapter_dir)
    if config.get("use_rslora"):
        raise InputError(
            "is scaled by alpha over the root of the rank (rslora), and training scales by alpha over the rank",
            path=adapter_dir,
            remedy="merge it with tools/merge_lora.py and start from the result",
        )
    theirs, ours = _adapted(stored), _adapted(plan.shapes)
    rank, alpha = int(config["r"]), int(config["lora_alpha"])
    if (rank, alpha, theirs) != (plan.rank, plan.alpha, ours):
        targets = ",".join(sorted({name.rpartition(".")[2] for name in theirs}))
        raise InputError(
            f"has rank {rank}, alpha {alpha} and {len(theirs)} layers ({targets}); "
            f"this run has rank {plan.rank}, alpha {plan.alpha} and {len(ours)} ({','.join(plan.targets)})",
            path=adapter_dir,
            remedy=f"pass --lora_rank {rank} --lora_alpha {alpha} --lora_targets {targets}, or merge it with "
            "tools/merge_lora.py and start from the result",
        )
    missing, unknown = sorted(plan.shapes.keys() - stored.keys()), sorted(stored.keys() - plan.shapes.keys())
    if missing or unknown:
        what = f"lacks {len(missing)} tensors, {missing[0]}" if missing else f"holds {len(unknown)} more, {unknown[0]}"
        differs = not any("lora_" in name for name in missing + unknown)
        remedy = f"pass --lora_train_embeddings {'no' if missing else 'yes'}" if differs else "use an older checkpoint"
        raise InputError(f"{what} first", path=adapter_dir / WEIGHTS_FILE, remedy=remedy)
    for name, shape in plan.shapes.items():
        if stored[name] != shape:
            raise InputError(
                f"{name} is {stored[name]}, and the model's {shape}",
                path=adapter_dir / WEIGHTS_FILE,
                remedy="pass the base that it was trained on as --pretrained",
            )
    check_base(adapter_dir, base_model_dir)


def put_on(model: Any, adapter_dir: Path) -> Any:
    """Put an adapter folder on a model that was loaded, by peft; return transformers' model with it inside.

    Raises:
        InputError: the adapter has a tensor that the model has no place for, or lacks one; peft would only warn.
    """
    from peft import PeftModel

    read_config(adapter_dir)
    stored = stored_shapes(adapter_dir)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that are missing: refused below
            with_adapter = PeftModel.from_pretrained(model, str(adapter_dir))
    except (ValueError, RuntimeError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"does not fit the model ({first_line})", path=adapter_dir) from None
    places = {peft_key(name) for name in with_adapter.state_dict()}
    lacking = {name for name in places if ".lora_" in name} - stored.keys()
    wrong = sorted(lacking | (stored.keys() - places))
    if wrong:
        raise InputError(
            f"does not fit the model: {len(wrong)} tensors, {wrong[0]} first",
            path=adapter_dir / WEIGHTS_FILE,
            remedy="give the base it was trained on",
        )
    return with_adapter.get_base_model()


def _adapted(shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Return the names of the layers that have an adapter."""
    return {name.partition(".lora_")[0] for name in shapes if ".lora_" in name}


def load_into(model: nn.Module, adapter_dir: Path) -> None:
    """Put an adapter's numbers, in fp32, in the place of what `add_lora` drew; `check_continues` has let it pass."""
    stored = map_tensors(adapter_dir)
    parameters = trained_parameters(model)
    assert stored.keys() == parameters.keys(), "checked before"
    for name, parameter in parameters.items():
        parameter.data = stored[name].float().clone()  # not mapped: the file may be replaced while the run goes on


def check_base(adapter_dir: Path, base_model_dir: Path) -> None:
    """Refuse a base that is not the one an adapter was trained on; peft's own adapters do not say, and pass.

    Raises:
        InputError: naming both.
    """
    path = adapter_dir / BASE_FILE
    if not adapter_dir.is_dir():
        raise InputError("no such folder", path=adapter_dir, remedy="give a folder saved by peft or train.py")
    if not path.is_file() or read_json(path).get("fingerprint") == weights_fingerprint(base_model_dir):
        return
    name = read_config(adapter_dir).get("base_model_name_or_path")
    raise InputError(
        f"was trained on other weights than those of {base_model_dir}", path=adapter_dir, remedy=f"its base was {name}"
    )


def weights_fingerprint(model_dir: Path) -> str:
    """Hash names, shapes, dtypes and samples of the numbers of all tensors of a model folder.

    A kilobyte of each tensor is read, so 70B take a second; how the tensors lie in files does not matter.
    """
    weights = find_weights(model_dir)
    digests = []
    for path in weights.paths:
        for name, tensor in weights.mapped(path):
            digest = hashlib.sha256(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
            flat = tensor.detach().reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)
            for begin in np.linspace(0, max(len(flat) - _SAMPLE_BYTES, 0), _SAMPLES).astype(int):
                digest.update(flat[begin : begin + _SAMPLE_BYTES].tobytes())
            digests.append(digest.hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
