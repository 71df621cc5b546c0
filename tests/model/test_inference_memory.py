"""Predicted memory: weights to the byte, and a 7B model at 4 bits in about 4 GB."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from colossal_llama2.model.inference_memory import CUDA_CONTEXT, Answering, Stored, predict_inference
from colossal_llama2.model.model_shape import ModelShape, read_model_shape
from colossal_llama2.model.quantizing import Method, Plan, quantize
from colossal_llama2.model.safetensors_stream import read_header
from colossal_llama2.model.weights import find_weights

LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "dtype": "float16",
}
GB = 10**9


@pytest.fixture
def seven_billion(tmp_path: Path) -> ModelShape:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2_7B), encoding="utf-8")
    return read_model_shape(tmp_path)


@pytest.mark.parametrize("stored", ["int4-gptq", "nf4"])
def test_7b_in_4_bits_takes_about_4_gb_at_128_tokens(seven_billion: ModelShape, stored: Stored) -> None:
    memory = predict_inference(seven_billion, Answering(stored, tokens=128))
    assert 3.9 * GB < memory.allocated < 4.2 * GB
    assert memory.total == memory.allocated + CUDA_CONTEXT < 4.7 * GB
    assert memory.cache == 2 * 32 * 4096 * 128 * 2
    plain = predict_inference(seven_billion, Answering("as stored", tokens=128))
    assert plain.weights == 2 * 6_738_415_616
    assert predict_inference(seven_billion, Answering("int8")).weights < 0.53 * plain.weights


def test_memory_grows_with_tokens_and_rows_as_keys_and_values_do(seven_billion: ModelShape) -> None:
    one = predict_inference(seven_billion, Answering("nf4", tokens=1024))
    assert predict_inference(seven_billion, Answering("nf4", tokens=1024, rows=4)).cache == 4 * one.cache
    assert predict_inference(seven_billion, Answering("nf4", tokens=2048)).cache == 2 * one.cache
    sliding = replace(seven_billion, window=512)
    assert predict_inference(sliding, Answering("nf4", tokens=1024)).cache == one.cache // 2
    grouped = replace(seven_billion, kv_heads=8)
    assert predict_inference(grouped, Answering("nf4", tokens=1024)).cache == one.cache // 4
    assert predict_inference(seven_billion, Answering("nf4", on_gpu=False)).context == 0


@pytest.mark.parametrize("stored", ["as stored", "int8", "int4-gptq", "nf4"])
@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_the_bytes_that_are_written(
    make_model: Callable[..., Path], tmp_path: Path, stored: Stored, with_head: bool, dtype: torch.dtype
) -> None:
    source = folder = make_model(dtype=dtype)
    if stored != "as stored":
        folder = tmp_path / "out"
        folder.mkdir()
        method: Method = stored
        rows = torch.arange(3, 43).reshape(2, 20) if method == "int4-gptq" else None
        quantize(source, Plan(method, 8, with_head), rows, folder, lambda line: None)
    asked = Answering(stored, group_size=8, with_head=with_head)
    predicted = predict_inference(read_model_shape(source), asked).weights
    tensors = [tensor for path in find_weights(folder).paths for tensor in read_header(path)[0]]
    # bitsandbytes writes a note of its own beside each matrix, in JSON
    notes = sum(tensor.end - tensor.begin for tensor in tensors if "quant_state.bitsandbytes" in tensor.name)
    assert sum(tensor.end - tensor.begin for tensor in tensors) - notes == predicted
