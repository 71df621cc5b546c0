"""An adapter that scores, added into the layers it was trained on: the folder of a scorer like any other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from colossal_llama2.errors import InputError
from colossal_llama2.model.adapter_files import check_base, map_tensors, read_config
from colossal_llama2.model.lora import KEY_PREFIX
from colossal_llama2.model.scalar_head import HEAD_WEIGHT, load_scorer, scorer_config
from colossal_llama2.tokenizer.folder import copy_tokenizer_files


def merge_scorer(base_model_dir: Path, adapter_dir: Path, target: Path) -> None:
    """Write a base with an adapter added into it and the head that was trained beside it; holds the model in memory.

    Args:
        base_model_dir: the model folder that the adapter was trained on.
        adapter_dir: of a reward model, in peft's format.
        target: an empty folder.

    Raises:
        InputError: the adapter has no head that scores, or is not one of this base.
    """
    config, tensors = read_config(adapter_dir), map_tensors(adapter_dir)
    check_base(adapter_dir, base_model_dir)
    if KEY_PREFIX + HEAD_WEIGHT not in tensors:
        raise InputError("has no head that scores", path=adapter_dir, remedy="merge it with tools/merge_lora.py")
    rank = config["r"]
    scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    model: Any = load_scorer(base_model_dir, "fp32")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key, tensor in tensors.items():
            name = key.removeprefix(KEY_PREFIX)
            layer, is_pair, part = name.partition(".lora_")
            if not is_pair:
                parameters[name].copy_(tensor)
            elif part.startswith("A"):
                product = tensors[key.replace(".lora_A.", ".lora_B.")].float() @ tensor.float()
                weight = parameters[f"{layer}.weight"]
                weight.copy_(weight.float() + scaling * product)
    model.save_pretrained(target)
    (target / "config.json").write_text(scorer_config(base_model_dir), encoding="utf-8")
    copy_tokenizer_files(base_model_dir, target)
