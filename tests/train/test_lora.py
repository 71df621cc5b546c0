"""LoRA trains like plain peft, resumes to the last bit, and what it leaves is peft's own format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from colossal_llama2.tokenizer.expansion import new_tokens

RANK = 4
EMBEDDINGS = {"base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"}


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def model_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model.float().eval()(torch.arange(3, 40)[None]).logits
    return output


def with_adapter(base: Path, adapter: Path, **options: Any) -> Any:
    """Load base and adapter as anybody would."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter, **options)


@pytest.fixture(scope="module")
def reference(
    tiny_model_dir: Path,
    tiny_adapter_dir: Path,
    corpus_dir: Path,
    plain_curve: Callable[..., list[tuple[float, float]]],
) -> list[tuple[float, float]]:
    """Give the curve of plain peft."""
    model = with_adapter(tiny_model_dir, tiny_adapter_dir, is_trainable=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    return plain_curve(model, [{"params": trained, "weight_decay": 0.1}], corpus_dir)


@pytest.mark.parametrize(
    ("ranks", "plugin", "flags"),
    [
        (2, "zero2", ["--accumulation_steps", 2]),
        (2, "ddp", ["--micro_batch_size", 2, "--use_grad_checkpoint"]),
        pytest.param(2, "zero2_cpu", ["--micro_batch_size", 2], marks=pytest.mark.long),
        pytest.param(1, "zero2", ["--micro_batch_size", 4, "--use_grad_checkpoint"], marks=pytest.mark.long),
        pytest.param(4, "zero2", [], marks=pytest.mark.long),
        pytest.param(4, "ddp", [], marks=pytest.mark.long),
    ],
)
def test_the_curve_is_that_of_plain_peft(
    train_on: Callable[..., Any],
    reference: list[tuple[float, float]],
    tiny_adapter_dir: Path,
    plain_flags: list[object],
    tmp_path: Path,
    ranks: int,
    plugin: str,
    flags: list[object],
) -> None:
    """It goes on with an adapter that peft saved, so both start from the same numbers."""
    lora = ["--lora_rank", RANK, "--load_checkpoint", tiny_adapter_dir]
    run = train_on(
        ranks, tmp_path / "run", *plain_flags, *lora, "--plugin", plugin, "--mixed_precision", "fp32", *flags
    )
    assert run.code == 0, run.output
    assert len(run.metrics) == 5
    for line, (loss, norm) in zip(run.metrics, reference, strict=True):
        assert line["loss"] == pytest.approx(loss, abs=1e-5)
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert reference[-1][0] < reference[0][0] - 0.1, "nothing was learned, so equality would show little"


RESUME = ["--max_steps", 7, "--lr", 1e-2, "--num_epochs", 2, "--micro_batch_size", 2, "--lora_rank", RANK]


@pytest.mark.parametrize(
    ("plugin", "precision", "dtype", "more"),
    [
        ("zero2", "bf16", "float32", ["--lora_dropout", 0.2]),
        pytest.param("zero2", "fp16", "bfloat16", ["--train_new_rows_only"], marks=pytest.mark.long),
        pytest.param("zero2", "fp32", "bfloat16", [], marks=pytest.mark.long),
        pytest.param("zero2_cpu", "bf16", "bfloat16", [], marks=pytest.mark.long),
        pytest.param("zero2_cpu", "fp16", "float32", [], marks=pytest.mark.long),
        pytest.param("zero2_cpu", "fp32", "float16", [], marks=pytest.mark.long),
        pytest.param("ddp", "bf16", "bfloat16", ["--lora_dropout", 0.2], marks=pytest.mark.long),
        pytest.param("ddp", "fp16", "float32", ["--use_grad_checkpoint"], marks=pytest.mark.long),
        pytest.param("ddp", "fp32", "bfloat16", ["--lora_train_embeddings", "no"], marks=pytest.mark.long),
        ("3d --tp 2", "bf16", "bfloat16", []),
        pytest.param("3d --pp 2 --accumulation_steps 2", "bf16", "float32", [], marks=pytest.mark.long),
        pytest.param(
            "3d --pp 2 --accumulation_steps 2",
            "fp16",
            "bfloat16",
            ["--lora_train_embeddings", "no"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_resuming_is_exact_and_the_adapter_is_peft_s(
    train_on: Callable[..., Any],
    expanded: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
    plugin: str,
    precision: str,
    dtype: str,
    more: list[object],
) -> None:
    base, corpus = expanded(dtype)
    flags = [*RESUME, "--plugin", *plugin.split(), "--mixed_precision", precision, *more]
    whole = train_on(2, tmp_path / "whole", *flags, "--save_interval", 3, "--lora_merge", model_dir=base, corpus=corpus)
    assert whole.code == 0, whole.output
    checkpoint = tmp_path / "whole" / "epoch-0_step-3"
    assert {path.name for path in (checkpoint / "modeling").glob("*.safetensors")} == {"adapter_model.safetensors"}
    saved = adapter_weights(checkpoint / "modeling")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert (EMBEDDINGS & saved.keys()) == (set() if "no" in more else EMBEDDINGS)
    random_states = [load_file(checkpoint / "random_states" / f"rank-0000{rank}.safetensors")["cpu"] for rank in (0, 1)]
    alike = "3d" in plugin  # two ranks that see the same rows
    assert torch.equal(*random_states) == alike, "ranks that see different rows would drop alike"
    resumed = train_on(2, tmp_path / "resumed", *flags, "--load_checkpoint", checkpoint, model_dir=base, corpus=corpus)
    assert resumed.code == 0, resumed.output
    assert [line["step"] for line in resumed.metrics] == [4, 5, 6, 7]
    assert resumed.curve() == whole.curve()[3:]
    one, other = (adapter_weights(tmp_path / name / "adapter") for name in ("whole", "resumed"))
    assert one.keys() == other.keys() == saved.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], saved[name]) for name in one)
    assert not (tmp_path / "resumed" / "modeling").exists(), "merged only on request"
    assert_merged(base, tmp_path / "whole", dtype)


def assert_merged(base: Path, save_dir: Path, dtype: str) -> None:
    """SAVE_DIR/modeling is what peft makes of base and SAVE_DIR/adapter."""
    from transformers import AutoModelForCausalLM

    merged = model_weights(save_dir / "modeling")
    assert {tensor.dtype for tensor in merged.values()} == {getattr(torch, dtype)}
    expected = with_adapter(base, save_dir / "adapter").merge_and_unload().state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(
            tensor, expected[name].to(tensor.dtype), rtol=2e-2 if dtype != "float32" else 1e-5, atol=1e-6
        )
    alone = AutoModelForCausalLM.from_pretrained(save_dir / "modeling", dtype="auto")
    assert str(alone.dtype) == f"torch.{dtype}"
    close = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.4}[dtype]
    assert (logits(alone) - logits(with_adapter(base, save_dir / "adapter"))).abs().max() < close


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.long)])
def test_new_rows_learn_beside_an_adapter(
    train_on: Callable[..., Any],
    expanded: Callable[..., tuple[Path, Path]],
    plain_flags: list[object],
    tmp_path: Path,
    tied: bool,
) -> None:
    base, corpus = expanded("bfloat16", tied)
    flags = [*plain_flags, "--lora_rank", RANK, "--mixed_precision", "bf16", "--train_new_rows_only"]
    run = train_on(2, tmp_path / "run", *flags, model_dir=base, corpus=corpus)
    assert run.code == 0, run.output
    before, after, rows = model_weights(base), adapter_weights(tmp_path / "run" / "adapter"), new_tokens(base)
    matrices = EMBEDDINGS & after.keys()
    assert len(matrices) == (1 if tied else 2)
    for name in matrices:
        old = before[name.removeprefix("base_model.model.")].float()
        moved = (old != after[name]).any(1).nonzero().flatten().tolist()
        assert moved
        assert set(moved) <= set(rows)
    assert any(bool(tensor.any()) for name, tensor in after.items() if "lora_B" in name)
    weights = with_adapter(base, tmp_path / "run" / "adapter").state_dict()
    assert all(torch.equal(weights[name], after[name]) for name in matrices), "peft would see another model"
