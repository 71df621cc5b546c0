"""Shapes come from config.json and headers alone, and disagreement is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from colossal_llama2.errors import InputError
from colossal_llama2.model.model_shape import read_model_shape


def test_a_folder_is_described_without_its_weights(tiny_model_dir: Path) -> None:
    shape = read_model_shape(tiny_model_dir)
    assert shape.model_type == "llama"
    assert (shape.hidden, shape.intermediate, shape.layers, shape.vocab) == (32, 64, 2, 640)
    assert (shape.heads, shape.kv_heads, shape.head_dim) == (2, 2, 16)
    layer = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32
    assert shape.numel == 2 * 640 * 32 + 2 * layer + 32
    assert shape.stored_dtype == "float32"
    assert shape.stored_bytes == 4 * shape.numel
    assert shape.has_tp_plan
    assert not shape.tied
    by_role = {role: sum(1 for p in shape.parameters if p.role == role) for role in ("embedding", "head", "other")}
    assert by_role == {"embedding": 1, "head": 1, "other": 1}
    styles = {p.linear: p.tp_style for p in shape.parameters if p.layer == 1 and p.linear}
    assert styles["q_proj"] == "colwise"
    assert styles["down_proj"] == "rowwise"
    assert len(styles) == 7


def test_config_alone_is_enough(tiny_model_dir: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_model_dir / "config.json", tmp_path)
    shape = read_model_shape(tmp_path)
    assert shape.parameters == read_model_shape(tiny_model_dir).parameters
    assert shape.stored_bytes == 0


def test_a_tied_weight_counts_once(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    shape = read_model_shape(tmp_path)
    assert shape.tied
    assert shape.numel == read_model_shape(tiny_model_dir).numel - 640 * 32
    assert not any(p.role == "head" for p in shape.parameters)


def test_weights_that_are_not_the_configurations_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 704}))
    with pytest.raises(InputError, match=r"is stored as \[640, 32\], and config.json makes it \[704, 32\]"):
        read_model_shape(tmp_path)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a model folder"):
        read_model_shape(tmp_path)
    for config, reason in (
        ('{"model_type": "vit"}', "not a causal language model"),
        ('{"model_type": "mamba", "num_hidden_layers": 1, "hidden_size": 8}', "without attention heads"),
        ("{}", "not a causal language model"),
    ):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(InputError, match=reason):
            read_model_shape(tmp_path)
