"""A model folder whose tokenizer does not fit is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from colossal_llama2.errors import InputError
from colossal_llama2.model.belonging import check_belongs, fingerprint_entries


def test_model_and_its_tokenizer_belong_together(make_model: Callable[..., Path]) -> None:
    check_belongs(make_model())
    check_belongs(make_model("padded", spare_rows=50))
    check_belongs(make_model("tied", tie_word_embeddings=True))


def test_too_few_and_too_many_rows(make_model: Callable[..., Path], expanded_tokenizer_dir: Path) -> None:
    model = make_model()
    shutil.copytree(expanded_tokenizer_dir, model, dirs_exist_ok=True)
    with pytest.raises(InputError, match="do not belong together"):
        check_belongs(model)
    with pytest.raises(InputError, match="do not belong together"):
        check_belongs(make_model("far", spare_rows=5000))


def test_fingerprint_tells_tokenizers_of_one_size_apart(make_model: Callable[..., Path]) -> None:
    model = make_model()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **fingerprint_entries(model)}))
    check_belongs(model)
    raw = (model / "tokenizer.model").read_bytes()
    (model / "tokenizer.model").write_bytes(raw.replace("今".encode(), "龘".encode()))
    with pytest.raises(InputError, match="another one than the model's rows were made for"):
        check_belongs(model)


def test_rows_other_than_declared(make_model: Callable[..., Path]) -> None:
    model = make_model()
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InputError, match=r"lm_head\.weight has \d+ rows, config\.json says vocab_size"):
        check_belongs(model)


@pytest.mark.parametrize(
    ("missing", "complaint"),
    [
        ("config.json", r"holds no config\.json"),
        ("tokenizer.model", "holds neither"),
        ("model.safetensors", "holds no weights"),
    ],
)
def test_missing_parts(missing: str, complaint: str, make_model: Callable[..., Path]) -> None:
    model = make_model()
    (model / missing).unlink()
    with pytest.raises(InputError, match=complaint):
        check_belongs(model)


def test_not_a_model(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="no such folder"):
        check_belongs(tmp_path / "absent")
    model = make_model()
    for content, complaint in (
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no vocab_size"),
        ('{"vocab_size": 5, "model_type": "nonsense"}', "that transformers knows"),
        ('{"vocab_size": 5, "model_type": "t5"}', "that transformers knows"),
    ):
        (model / "config.json").write_text(content)
        with pytest.raises(InputError, match=complaint):
            check_belongs(model)


def test_a_pytorch_file_with_more_than_tensors_is_refused(make_model: Callable[..., Path]) -> None:
    model = make_model()
    (model / "model.safetensors").unlink()
    torch.save({"weights": {"nested": torch.zeros(1)}}, model / "pytorch_model.bin")
    with pytest.raises(InputError, match="more than a model's tensors"):
        check_belongs(model)
    (model / "pytorch_model.bin").write_bytes(b"junk")
    with pytest.raises(InputError, match="not a PyTorch weight file"):
        check_belongs(model)
