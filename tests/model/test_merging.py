"""A merged model is what peft's merge_and_unload makes, however the base is stored; what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from colossal_llama2.errors import InputError
from colossal_llama2.model.adapter_files import (
    WEIGHTS_FILE,
    check_continues,
    put_on,
    weights_fingerprint,
    write_small_files,
)
from colossal_llama2.model.lora import LoraPlan, add_lora, plan_lora, trained_parameters
from colossal_llama2.model.merge_lora import MergeSettings, main


def loaded(folder: Path, dtype: Any = "auto") -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def save_adapter(base: Path, folder: Path, embeddings: bool = True, rank: int = 3) -> LoraPlan:
    """Save an adapter of random numbers."""
    plan = plan_lora(base, rank, 12, 0.0, [], embeddings)
    model = loaded(base)
    add_lora(model, plan, seed=0)
    draw = torch.Generator().manual_seed(0)
    tensors = {n: torch.randn(p.shape, generator=draw) * 0.3 for n, p in trained_parameters(model).items()}
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_small_files(folder, plan.config(base), base, weights_fingerprint(base))
    return plan


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def as_bin(folder: Path) -> None:
    """Store a model's weights as PyTorch does."""
    torch.save(weights(folder), folder / "pytorch_model.bin")
    for path in folder.glob("model*.safetensors*"):
        path.unlink()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("embeddings", [False, True])
def test_in_fp64_it_is_peft_s_merge(
    make_model: Callable[..., Path], tmp_path: Path, tied: bool, embeddings: bool
) -> None:
    from peft import PeftModel

    base = make_model(dtype=torch.float64, tie_word_embeddings=tied, max_shard_size="20KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    save_adapter(base, tmp_path / "adapter", embeddings)
    main(MergeSettings(base, tmp_path / "adapter", tmp_path / "out"))
    on_base = PeftModel.from_pretrained(loaded(base), tmp_path / "adapter", autocast_adapter_dtype=False)
    expected = on_base.merge_and_unload().state_dict()
    merged, before = weights(tmp_path / "out"), weights(base)
    assert merged.keys() == before.keys() <= expected.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-6, atol=1e-6
        )  # peft multiplies in the adapter's fp32
        assert torch.equal(tensor, before[name]) == ("norm" in name or (not embeddings and "proj" not in name)), name
    model = loaded(tmp_path / "out")
    ids = torch.arange(12)[None]
    torch.testing.assert_close(model(ids).logits, on_base(ids).logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        put_on(loaded(base), tmp_path / "adapter")(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored_as_bin", [False, True])
def test_the_sum_is_rounded_once_and_the_dtype_stays(
    make_model: Callable[..., Path], tmp_path: Path, dtype: torch.dtype, stored_as_bin: bool
) -> None:
    base = make_model(dtype=dtype)
    save_adapter(base, tmp_path / "adapter")
    before, adapter = weights(base), load_file(tmp_path / "adapter" / WEIGHTS_FILE)
    if stored_as_bin:
        as_bin(base)
        (tmp_path / "adapter" / "base_model.json").unlink()
    main(MergeSettings(base, tmp_path / "adapter", tmp_path / "out"))
    merged = weights(tmp_path / "out")
    assert {tensor.dtype for tensor in merged.values()} == {dtype}
    name = "model.layers.1.self_attn.v_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
    assert torch.equal(merged[f"{name}.weight"], (before[f"{name}.weight"].float() + 4 * (b @ a)).to(dtype))
    assert torch.equal(merged["lm_head.weight"], adapter["base_model.model.lm_head.weight"].to(dtype))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads((base / "config.json").read_text())
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == (base / "tokenizer.model").read_bytes()


def test_what_does_not_fit_is_refused_and_nothing_is_written(make_model: Callable[..., Path], tmp_path: Path) -> None:
    base, adapter, out = make_model(), tmp_path / "adapter", tmp_path / "out"
    plan = save_adapter(base, adapter)
    good = load_file(adapter / WEIGHTS_FILE)
    other = make_model("other", initializer_range=0.3)
    with pytest.raises(InputError, match="other weights"):
        main(MergeSettings(other, adapter, out))
    with pytest.raises(InputError, match="other weights"):
        check_continues(adapter, plan, other)
    a = next(name for name in good if ".lora_A." in name)
    wrong = [
        ("no counterpart", {name: tensor for name, tensor in good.items() if name != a}),
        ("of no tensor", {**good, "base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": good[a].clone()}),
        (
            "in the adapter",
            {**good, "base_model.model.lm_head.weight": good["base_model.model.lm_head.weight"][1:].clone()},
        ),
    ]
    for complaint, tensors in wrong:
        save_file(tensors, adapter / WEIGHTS_FILE)
        with pytest.raises(InputError, match=complaint):
            main(MergeSettings(base, adapter, out))
        with pytest.raises(InputError):
            check_continues(adapter, plan, base)
        with pytest.raises(InputError):
            put_on(loaded(base), adapter)
    save_file(good, adapter / WEIGHTS_FILE)
    check_continues(adapter, plan, base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    for change, complaint in (
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4, which changes the base"),
        ({"r": None}, "has r None"),
        ({"lora_alpha": 0}, "has lora_alpha 0"),
        ({"use_dora": True}, "DoRA"),
        ({"peft_type": "IA3"}, "not LoRA"),
        ({"bias": "all"}, "biases"),
    ):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match=complaint):
            main(MergeSettings(base, adapter, out))
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    with pytest.raises(InputError, match="rslora"):  # merging knows that scale, training does not
        check_continues(adapter, plan, base)
    assert not out.exists()
    with pytest.raises(InputError, match="would replace"):
        main(MergeSettings(base, adapter, tmp_path, overwrite=True))


def test_flags_that_differ_from_an_adapter_are_answered_with_those_that_fit(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_model()
    save_adapter(base, tmp_path / "adapter", embeddings=False)
    for rank, alpha, targets in ((4, 12, []), (3, 6, []), (3, 12, ["q_proj"])):
        plan = plan_lora(base, rank, alpha, 0.0, targets, embeddings=False)
        with pytest.raises(InputError, match="pass --lora_rank 3 --lora_alpha 12 --lora_targets down_proj,gate_proj"):
            check_continues(tmp_path / "adapter", plan, base)
    with pytest.raises(InputError, match=r"lacks 2 tensors.*--lora_train_embeddings no"):
        check_continues(tmp_path / "adapter", plan_lora(base, 3, 12, 0.0, [], embeddings=True), base)


def test_a_fingerprint_does_not_depend_on_how_the_weights_lie_in_files(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    one = weights_fingerprint(make_model("one"))
    assert weights_fingerprint(make_model("shards", max_shard_size="20KB")) == one
    folder = make_model("bin")
    as_bin(folder)
    assert weights_fingerprint(folder) == one
    changed = make_model("changed")
    shutil.copytree(changed, tmp_path / "again")
    tensors = weights(changed)
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    assert weights_fingerprint(changed) != one
    assert weights_fingerprint(tmp_path / "again") == one
