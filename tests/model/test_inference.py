"""Loading a model folder for inference, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama2.errors import InputError
from colossal_llama2.model.inference import choose_device, load_for_inference


def test_loads_model_and_tokenizer_in_the_stored_dtype(tiny_model_dir: Path) -> None:
    loaded = load_for_inference(tiny_model_dir)
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert loaded.context_length == 128
    assert loaded.document_start == loaded.encoder.bos_token_id == 1
    ids = loaded.encoder.encode(["今天 fox"]).ids.tolist()
    assert loaded.tokenizer.decode(ids) == "今天 fox"


def test_refuses_a_tokenizer_with_more_tokens_than_rows(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["extra_special_tokens"] = [f"<extra_{i}>" for i in range(400)]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match="do not belong"):
        load_for_inference(folder)


def test_refuses_folders_that_are_no_models(tmp_path: Path, llama_tokenizer_dir: Path) -> None:
    for folder in (tmp_path / "absent", llama_tokenizer_dir):
        with pytest.raises(InputError):
            load_for_inference(folder)


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(InputError, match="unknown device"):
        choose_device("abacus")
    with pytest.raises(InputError, match="no device"):
        choose_device("cuda:99")


def test_of_a_models_own_generation_settings_only_the_end_tokens_count(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    own = {"eos_token_id": [2, 7], "num_beams": 4, "min_length": 50, "temperature": 0.1, "max_length": 9}
    (folder / "generation_config.json").write_text(json.dumps(own))
    loaded = load_for_inference(folder, "cpu")
    assert loaded.end_token_ids == {2, 7}
    settings: Any = loaded.model.generation_config
    assert {settings.num_beams, settings.min_length, settings.temperature, settings.max_length} == {None}
