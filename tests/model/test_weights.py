"""Weight files are found in every layout, and a broken layout is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from colossal_llama2.errors import InputError
from colossal_llama2.model.safetensors_stream import write_tensors
from colossal_llama2.model.weights import find_weights

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16), "c": torch.arange(3)}


@pytest.mark.parametrize("is_safetensors", [True, False])
def test_locations_and_mapping(is_safetensors: bool, tmp_path: Path) -> None:
    path = tmp_path / ("model.safetensors" if is_safetensors else "pytorch_model.bin")
    save_file(TENSORS, path) if is_safetensors else torch.save(TENSORS, path)
    weights = find_weights(tmp_path)
    assert weights.is_safetensors is is_safetensors
    assert weights.locations() == {"b": (path, (2, 3), "F32"), "a": (path, (3,), "BF16"), "c": (path, (3,), "I64")}
    assert all(torch.equal(weights.map(path, name), tensor) for name, tensor in TENSORS.items())
    outgoing, metadata = weights.outgoing(path)
    write_tensors(tmp_path / "again.safetensors", outgoing, metadata)
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == TENSORS.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in TENSORS.items())


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert [path.name for path in find_weights(tmp_path).paths] == ["model.safetensors"]


def test_index(tmp_path: Path) -> None:
    for name in TENSORS:
        save_file({name: TENSORS[name]}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in TENSORS}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_weights(tmp_path).locations().keys() == TENSORS.keys()
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"b\.safetensors: a weight file that the index names is missing"):
        find_weights(tmp_path)
    index["weight_map"]["b"] = "../b.safetensors"
    save_file({"b": TENSORS["b"]}, tmp_path.parent / "b.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="that the index names"):
        find_weights(tmp_path)


def test_target_names(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert find_weights(tmp_path).target_name(tmp_path / "pytorch_model.bin") == "model.safetensors"
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": dict.fromkeys(TENSORS, "pytorch_model-00001-of-00001.bin")}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    weights = find_weights(tmp_path)
    assert weights.target_name(weights.paths[0]) == "model-00001-of-00001.safetensors"


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no weights"):
        find_weights(tmp_path)
