"""Quantised folders: loaded by transformers itself they compute what was rounded, and all else is as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from colossal_llama2.errors import InputError
from colossal_llama2.model.gptq import Grid, gptq, round_to_nearest
from colossal_llama2.model.quantizing import Method, Plan, check_model, group_size_for, linear_layers, quantize
from colossal_llama2.model.quantizing_layers import quantize_layers
from colossal_llama2.model.quantizing_writing import take_rest_along

METHODS: tuple[Method, ...] = ("int8", "int4-gptq", "nf4")
ROWS = torch.randint(3, 300, (6, 24), generator=torch.Generator().manual_seed(1))


def quantised(model_dir: Path, target: Path, plan: Plan) -> Path:
    check_model(model_dir, plan)
    target.mkdir()
    quantize(model_dir, plan, ROWS if plan.method == "int4-gptq" else None, target, lambda line: None)
    take_rest_along(model_dir, target)
    return target


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ROWS[:2], use_cache=False).logits
    return found.float()


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_itself_loads_every_method(
    make_model: Callable[..., Path], tmp_path: Path, method: Method, tied: bool
) -> None:
    source = make_model(tie_word_embeddings=tied)
    folder = quantised(source, tmp_path / "out", Plan(method, 8))
    before, after = logits(load(source)), logits(load(folder))
    assert 0 < (after - before).norm() / before.norm() < 0.3
    assert not list(folder.glob("*.bin"))
    assert not list(folder.glob(".saved*"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    described = config.pop("quantization_config")
    assert described["quant_method"] == ("bitsandbytes" if method == "nf4" else "compressed-tensors")
    assert config == json.loads((source / "config.json").read_text(encoding="utf-8"))
    for name in ("tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_embedding_head_and_norms_keep_their_numbers(
    make_model: Callable[..., Path], tmp_path: Path, method: Method
) -> None:
    source = make_model(dtype=torch.bfloat16)
    folder = quantised(source, tmp_path / "out", Plan(method, 8))
    old, new = load_file(source / "model.safetensors"), load_file(folder / "model.safetensors")
    kept = {name for name in old if "proj" not in name}
    assert kept == {name for name in new if "proj" not in name}
    assert len(kept) == 7
    assert all(torch.equal(old[name], new[name]) and old[name].dtype == new[name].dtype for name in kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_each_matrix_rounded_to_the_nearest(
    make_model: Callable[..., Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    source = make_model(dtype=dtype)
    folder = quantised(source, tmp_path / "out", Plan("int8"))
    expected = load(source)
    for name, (_, columns) in linear_layers(source, with_head=False).items():
        weight = expected.get_parameter(name)
        weight.data = round_to_nearest(weight.data, Grid(8, columns)).dense().to(dtype)
    assert torch.equal(logits(load(folder)), logits(expected))


def test_shards_and_their_index_are_written_again(make_model: Callable[..., Path], tmp_path: Path) -> None:
    source = make_model(max_shard_size="40KB")
    names = sorted(path.name for path in source.glob("*.safetensors"))
    assert len(names) > 1
    folder = quantised(source, tmp_path / "out", Plan("int4-gptq", 8))
    assert sorted(path.name for path in folder.glob("*.safetensors")) == names
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    tensors = {name: tensor for path in names for name, tensor in load_file(folder / path).items()}
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert logits(load(folder)).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_the_head_is_rounded_when_asked_for(make_model: Callable[..., Path], tmp_path: Path, method: Method) -> None:
    source = make_model()
    folder = quantised(source, tmp_path / "out", Plan(method, 8, with_head=True))
    stored = load_file(folder / "model.safetensors")["lm_head.weight"] if method == "nf4" else None
    assert stored is None or stored.dtype == torch.uint8
    if method != "nf4":
        assert "lm_head.weight_packed" in load_file(folder / "model.safetensors")
    before, after = logits(load(source)), logits(load(folder))
    assert 0 < (after - before).norm() / before.norm() < 0.3
    with pytest.raises(InputError, match="output head is the input embedding"):
        check_model(make_model("tied", tie_word_embeddings=True), Plan(method, 8, with_head=True))


def test_layers_see_inputs_of_layers_already_rounded(make_model: Callable[..., Path]) -> None:
    source = make_model()
    model = load(source).eval()
    found = dict(quantize_layers(model, ROWS, lambda columns: Grid(4, 8), torch.device("cpu"), lambda line: None))
    assert len(found) == 14
    plain = load(source).eval()
    for name in [name for name in found if ".layers.0." in name]:
        plain.get_parameter(name).data = found[name].dense()
    target = plain.get_submodule("model.layers.1.mlp.gate_proj")
    assert isinstance(target, nn.Linear)
    seen: list[torch.Tensor] = []
    hook = target.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].reshape(-1, 16)))
    with torch.no_grad():
        plain(input_ids=ROWS)
    hook.remove()
    expected = gptq(target.weight.data, seen[0].T @ seen[0], Grid(4, 8))
    ours = found["model.layers.1.mlp.gate_proj.weight"]
    assert torch.equal(ours.scales, expected.scales)
    assert (ours.numbers == expected.numbers).float().mean() > 0.99
    assert torch.equal(model.get_parameter("model.layers.1.mlp.gate_proj.weight"), ours.dense())


def test_the_walk_leaves_the_model_computing_as_the_folder_does(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_model()
    model = load(source).eval()
    done: list[str] = []
    assert list(quantize_layers(model, ROWS, lambda columns: Grid(4, 8), torch.device("cpu"), done.append))
    assert done == ["layer 1 of 2", "layer 2 of 2"]
    folder = quantised(source, tmp_path / "out", Plan("int4-gptq", 8))
    assert torch.allclose(logits(load(folder)), logits(model), atol=1e-6)


@pytest.mark.parametrize(
    ("columns", "wanted", "expected"),
    [(4096, 128, 128), (11008, 128, 128), (160, 128, 80), (432, 128, 72), (24, 128, 24), (44, 128, 44), (64, 96, 64)],
)
def test_groups_divide_the_columns(columns: int, wanted: int, expected: int) -> None:
    assert group_size_for(columns, wanted) == expected


def test_what_cannot_be_quantised_is_refused(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_model()
    with pytest.raises(InputError, match="--group_size is 4"):
        check_model(source, Plan("int4-gptq", 4))
    folder = quantised(source, tmp_path / "out", Plan("int8"))
    with pytest.raises(InputError, match=r"is quantised \(compressed-tensors\) and cannot be quantised again"):
        check_model(folder, Plan("nf4"))
    other = tmp_path / "other"
    shutil.copytree(source, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 1, "architectures": ["GPT2LMHeadModel"]}
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match="not built like Llama's"):
        check_model(other, Plan("int4-gptq"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'bitsandbytes"):
        check_model(source, Plan("nf4"))


def test_activations_that_are_not_finite_are_refused(make_model: Callable[..., Path]) -> None:
    model = load(make_model()).eval()
    model.get_parameter("model.layers.0.mlp.up_proj.weight").data.fill_(torch.inf)
    with pytest.raises(InputError, match="not finite"):
        list(quantize_layers(model, ROWS, lambda columns: Grid(4, 8), torch.device("cpu"), lambda line: None))
