"""Quantised folders where models are loaded, and where they are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from colossal_llama2.errors import InputError
from colossal_llama2.model.frozen_model import FrozenModel
from colossal_llama2.model.inference import load_for_inference
from colossal_llama2.model.merge_lora import MergeSettings
from colossal_llama2.model.merge_lora import main as merge_lora
from colossal_llama2.model.pretrained import load_for_training
from colossal_llama2.model.quantized import loading_options, refuse_quantized, settle, stay_packed, stored_format
from colossal_llama2.model.quantizing import Method, Plan, quantize
from colossal_llama2.model.scalar_head import load_scorer

IDS = torch.arange(3, 43).reshape(2, 20)
CPU = torch.device("cpu")


@pytest.fixture
def quantised(make_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Give a function that makes a tiny model and quantises it."""

    def made(method: Method = "int8", with_head: bool = False, dtype: torch.dtype = torch.float32) -> Path:
        folder = tmp_path / method
        folder.mkdir()
        plan = Plan(method, 8, with_head)
        quantize(make_model(dtype=dtype), plan, IDS if method == "int4-gptq" else None, folder, lambda line: None)
        return folder

    return made


@pytest.mark.parametrize("method", ["int8", "int4-gptq"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_packed_and_unpacked_compute_the_same(
    quantised: Callable[..., Path], method: Method, dtype: torch.dtype
) -> None:
    folder = quantised(method, with_head=True, dtype=dtype)
    by_library, packed = (AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval() for _ in range(2))
    assert stay_packed(packed) == 15
    ours = load_for_inference(folder, "cpu").model
    expected = by_library(input_ids=IDS).logits
    assert torch.equal(ours(input_ids=IDS).logits, expected)
    assert torch.equal(packed(input_ids=IDS).logits, expected)
    assert all(not hasattr(layer, "weight_packed") for layer in ours.modules())
    still = [layer for layer in packed.modules() if isinstance(layer, nn.Linear)]
    assert len(still) == 15
    assert all(layer.weight_packed.dtype == torch.int32 and not hasattr(layer, "weight") for layer in still)


def test_on_another_device_weights_stay_packed_and_other_models_are_left_alone(quantised: Callable[..., Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(quantised(), dtype="auto")
    settle(model, torch.device("cuda"))
    assert sum(hasattr(layer, "weight_packed") for layer in model.modules()) == 14
    plain = nn.Linear(2, 2)
    forward = plain.forward
    settle(plain, torch.device("cuda"))
    assert plain.forward == forward


@pytest.mark.parametrize("method", ["int8", "int4-gptq", "nf4"])
@pytest.mark.parametrize("with_head", [False, True])
def test_it_generates(
    quantised: Callable[..., Path], method: Method, with_head: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = quantised(method, with_head)
    capfd.readouterr()
    loaded = load_for_inference(folder, "cpu")
    answer = loaded.model.generate(  # type: ignore[operator]
        IDS[:1], max_new_tokens=5, min_new_tokens=5, pad_token_id=0
    )
    assert answer.shape == (1, 25)
    assert "it/s" not in capfd.readouterr().err


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_training_merging_and_distilling_are_refused(
    quantised: Callable[..., Path], tiny_adapter_dir: Path, tmp_path: Path, method: Method
) -> None:
    folder = quantised(method)
    with pytest.raises(InputError, match=r"is quantised .* and cannot be trained; name the model that it was made of"):
        load_for_training(folder, "fp32", False)
    with pytest.raises(InputError, match="cannot be trained"):
        load_scorer(folder, "fp32", False)
    with pytest.raises(InputError, match="cannot be distilled"):
        FrozenModel(folder, "cpu")
    with pytest.raises(InputError, match="takes no adapter"):
        merge_lora(MergeSettings(folder, tiny_adapter_dir, tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()
    with pytest.raises(InputError, match=r"merge the adapter into the unquantised model"):
        load_for_inference(folder, "cpu", tiny_adapter_dir)


def test_a_missing_library_is_named_with_its_command(
    quantised: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"compressed-tensors": quantised("int8")}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for library, folder in folders.items():
        with pytest.raises(InputError, match=rf"needs {library}, which is not installed; pip install '{library}>="):
            load_for_inference(folder, "cpu")


def test_the_format_is_read_from_config_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert stored_format(tmp_path) is None
    path.write_text("{}", encoding="utf-8")
    assert stored_format(tmp_path) is None
    assert loading_options(tmp_path, CPU) == {}
    refuse_quantized(tmp_path, "cannot be trained")
    path.write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}), encoding="utf-8")
    assert stored_format(tmp_path) == "awq"
    with pytest.raises(InputError, match=r"\(awq\)"):
        refuse_quantized(tmp_path, "cannot be trained")
    path.write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}), encoding="utf-8")
    assert loading_options(tmp_path, CPU) == {"device_map": {"": CPU}}
