"""Models that score: at the last real token, whatever stands beside it, and readable by transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from colossal_llama2.dataset.batches import collate
from colossal_llama2.errors import InputError
from colossal_llama2.model.belonging import check_belongs
from colossal_llama2.model.scalar_head import is_scorer, load_scorer, scorer_config, scores, values


def packed(texts: list[list[int]], length: int | None = None) -> Any:
    import numpy as np

    from colossal_llama2.dataset.parts import Row

    ids = np.concatenate([np.array(text, dtype=np.int32) for text in texts])
    return collate([Row(ids, ids, np.array([len(text) for text in texts], dtype=np.int32))], length=length)


def values_of(model: Any, batch: Any) -> torch.Tensor:
    return model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        cu_seq_lens_q=batch.cu_seq_lens,
        cu_seq_lens_k=batch.cu_seq_lens,
        max_length_q=batch.max_seq_len,
        max_length_k=batch.max_seq_len,
        use_cache=False,
    ).values


def saved(model: Any, source: Path, target: Path) -> Path:
    """Save a scorer as training does: the weights, and the changed configuration."""
    shutil.copytree(source, target)
    for path in target.glob("*.safetensors"):
        path.unlink()
    save_file(dict(model.state_dict()), target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(scorer_config(source))
    return target


def test_a_text_scores_the_same_alone_packed_and_padded(tiny_model_dir: Path) -> None:
    model = load_scorer(tiny_model_dir, "fp32").eval()
    texts = [[1, 5, 9], [1, 7], [1, 8, 2, 2]]  # ends with the end token, which is many a tokenizer's padding token
    with torch.no_grad():
        alone = torch.stack([values_of(model, packed([text]))[0, len(text) - 1] for text in texts])
        for length in (None, 16):
            batch = packed(texts, length)
            together = scores(values_of(model, batch), batch.document_ends)
            assert torch.allclose(together, alone, atol=1e-5)
    assert len({round(score, 4) for score in alone.tolist()}) == 3


def test_a_new_head_is_drawn_by_the_seed_and_its_spread_is_one_over_d_plus_one(tiny_model_dir: Path) -> None:
    heads = [load_scorer(tiny_model_dir, "fp32", seed=seed).get_parameter("score.weight") for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    wide = torch.nn.Module()
    wide.score = torch.nn.Linear(4000, 1, bias=False)
    from colossal_llama2.model.scalar_head import start_head

    start_head(wide, seed=3)
    assert wide.score.weight.std().item() == pytest.approx(1 / 4001, rel=0.05)


def test_the_folder_is_read_by_transformers_and_comes_back_the_same(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = load_scorer(tiny_model_dir, "fp32", seed=5).eval()
    folder = saved(model, tiny_model_dir, tmp_path / "scorer")
    check_belongs(folder)
    assert is_scorer(folder)
    assert not is_scorer(tiny_model_dir)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
    again = load_scorer(folder, "fp32", seed=99).eval()
    theirs, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    text = [1, 5, 9, 30]
    with torch.no_grad():
        ours = [values_of(each, packed([text]))[0, -1].item() for each in (model, again)]
        assert ours[0] == ours[1]
        assert theirs.eval()(input_ids=torch.tensor([text])).logits.item() == pytest.approx(ours[0], abs=1e-5)


def test_a_classifier_of_several_labels_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = saved(load_scorer(tiny_model_dir, "fp32"), tiny_model_dir, tmp_path / "classes")
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = weights["score.weight"].repeat(3, 1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="a classifier of 3 labels"):
        load_scorer(folder, "fp32")


def test_values_are_fp32_under_autocast() -> None:
    hidden, weight = torch.randn(2, 3, 8).bfloat16(), torch.randn(1, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = values(hidden, weight)
    assert found.dtype == torch.float32
    expected = (hidden.double() @ weight.double()[0]).float()
    assert torch.allclose(found, expected, atol=1e-5)
