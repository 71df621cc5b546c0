"""With --train_new_rows_only the added rows learn, and nothing else moves by a bit: every plugin, every precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from colossal_llama2.tokenizer.expansion import new_tokens

FLAGS = ["--max_steps", 4, "--lr", 1e-2, "--warmup_steps", 1, "--micro_batch_size", 2, "--accumulation_steps", 2]
HEAD, INPUT = "lm_head.weight", "model.embed_tokens.weight"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_only_new_rows_moved(base: Path, trained: Path, matrices: set[str]) -> None:
    before, after, rows = weights(base), weights(trained), new_tokens(base)
    if HEAD not in before and HEAD in after:  # Gemini writes a tied weight under both its names
        assert torch.equal(after.pop(HEAD), after[INPUT])
    assert before.keys() == after.keys() >= matrices
    assert 0 < rows.start < rows.stop < len(before[INPUT]), "there are rows before the new ones, and padding behind"
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        same = torch.eq(*(t.view(torch.uint8).reshape(len(t), -1) for t in (tensor, after[name]))).all(1)
        if name not in matrices:
            assert same.all(), name
            continue
        assert same[: rows.start].all(), name
        assert same[rows.stop :].all(), name
        seen = same.logical_not().nonzero().flatten().tolist()
        assert len(seen) >= 4, "four steps show most of the six new tokens that the corpus holds"
        if name == HEAD:
            assert seen == list(rows), "every row of a head learns at every step"


LONG = [
    pytest.param(plugin, precision, dtype, tied, marks=pytest.mark.long)
    for plugin, precisions in {
        "zero2": ("fp16", "bf16", "fp32"),
        "zero2_cpu": ("fp16", "bf16", "fp32"),
        "gemini": ("fp16", "bf16"),
        "gemini_auto": ("fp16", "bf16"),
        "ddp": ("fp16", "bf16", "fp32"),
        "3d --tp 2": ("fp16", "bf16"),
        "3d --pp 2": ("fp16", "bf16"),
        "3d --sp 2": ("bf16",),
    }.items()
    for precision in precisions
    for dtype, tied in (("float16", False), ("bfloat16", False), ("float32", False), ("float32", True))
]


@pytest.mark.parametrize(
    ("plugin", "precision", "dtype", "tied"),
    [
        ("zero2", "fp16", "bfloat16", False),
        ("gemini", "bf16", "float32", True),
        ("ddp", "fp32", "float16", False),
        ("3d --tp 2", "bf16", "float32", True),
        *LONG,
    ],
)
def test_base_rows_stay_to_the_last_bit(
    train_on: Callable[..., Any],
    expanded: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
    plugin: str,
    precision: str,
    dtype: str,
    tied: bool,
) -> None:
    model_dir, corpus = expanded(dtype, tied)
    flags = [*FLAGS, "--plugin", *plugin.split(), "--mixed_precision", precision, "--train_new_rows_only"]
    run = train_on(2, tmp_path / "run", *flags, model_dir=model_dir, corpus=corpus)
    assert run.code == 0, run.output
    assert not any(line["skipped"] for line in run.metrics[1:]), "nothing but overflows"
    assert_only_new_rows_moved(model_dir, tmp_path / "run" / "modeling", {INPUT} if tied else {INPUT, HEAD})
